"""ConsReFT: set the coordinates in a subspace to constants."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros

from luthier.core.contracts.form import dropout
from luthier.methods.forms._reft import RotatedReFT, stored


@dataclass(frozen=True)
class ConsReFT(RotatedReFT):
    """Φ(h) = h + Rᵀ (b - R h), R with orthonormal rows

    R is rank x d, b has rank entries (zeros). It projects from the first step on, so it does not start as a
    no-op: no choice of b could, since h varies. pyreft draws b from [0, 1), and has no dropout here.
    Speed of R: see loreft.
    """

    paper = "Wu, Arora et al. 2024, arXiv 2404.03592"
    family = "additive"
    identity = False

    def init(self, site, stats):
        return {"R": stored(self.start(site)), "b": zeros(self.rank)}

    def post(self, p, x, y):
        """The edited hidden state, y [..., d]."""
        r = self.rotation(p)
        return dropout(y + (p["b"] - y @ r.mT) @ r, self.dropout)
