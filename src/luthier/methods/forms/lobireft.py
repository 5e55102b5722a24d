"""LobiReFT: add a constant vector from a learned subspace."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros

from luthier.core.contracts.form import orthogonal
from luthier.methods.forms._reft import RotatedReFT


@dataclass(frozen=True)
class LobiReFT(RotatedReFT):
    """Φ(h) = h + Rᵀ b, R with orthonormal rows

    R is rank x d, b has rank entries (zeros: a no-op at the start).
    """

    paper = "Wu, Arora et al. 2024, arXiv 2404.03592"

    def init(self, site, stats):
        return {"R": orthogonal(self.rank, site.d_out), "b": zeros(self.rank)}

    def post(self, p, x, y):
        """The edited hidden state, y [..., d]."""
        return y + p["b"] @ self.rotation(p)
