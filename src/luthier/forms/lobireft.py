"""LobiReFT: add a constant vector from a learned subspace."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import zeros

from luthier.core.form import Form, orthogonal
from luthier.forms._rotation import orthonormal


@dataclass(frozen=True)
class LobiReFT(Form):
    """Φ(h) = h + Rᵀ b, R with orthonormal rows

    R is rank x d, b has rank entries (zeros: a no-op at the start).
    """

    paper = "Wu, Arora et al. 2024, arXiv 2404.03592"
    kinds = ("stream", "input", "affine", "embedding")
    lr = 9e-4
    where = "stream"

    rank: int = 8
    """Dimension of the subspace."""
    positions: str = field(default="f7+l7", kw_only=True)

    def init(self, site, stats):
        return {"R": orthogonal(self.rank, site.d_out), "b": zeros(self.rank)}

    def rotation(self, p):
        """R [rank, d], with orthonormal rows."""
        return orthonormal(p["R"])

    def post(self, p, x, y):
        """The edited hidden state, y [..., d]."""
        return y + p["b"] @ self.rotation(p)
