"""LobiReFT: add a constant vector from a learned subspace."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros

from luthier.core.contracts.form import dropout
from luthier.methods.forms._reft import RotatedReFT, stored


@dataclass(frozen=True)
class LobiReFT(RotatedReFT):
    """Φ(h) = h + Rᵀ b, R with orthonormal rows

    R is rank x d, b has rank entries (zeros: a no-op at the start; pyreft draws it from [0, 1)). Speed of R:
    see loreft.
    """

    paper = "Wu, Arora et al. 2024, arXiv 2404.03592"
    family = "additive"

    def init(self, site, stats):
        return {"R": stored(self.start(site)), "b": zeros(self.rank)}

    def post(self, p, x, y):
        """The edited hidden state, y [..., d]."""
        return dropout(y + p["b"] @ self.rotation(p), self.dropout)
