"""ConsReFT: set the coordinates in a subspace to constants."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros

from luthier.core.contracts.form import orthogonal
from luthier.methods.forms._reft import RotatedReFT


@dataclass(frozen=True)
class ConsReFT(RotatedReFT):
    """Φ(h) = h + Rᵀ (b - R h), R with orthonormal rows

    R is rank x d, b has rank entries (zeros). It projects from the first step on, so it does not start as a
    no-op: no choice of b could, since h varies.
    """

    paper = "Wu, Arora et al. 2024, arXiv 2404.03592"
    identity = False

    def init(self, site, stats):
        return {"R": orthogonal(self.rank, site.d_out), "b": zeros(self.rank)}

    def post(self, p, x, y):
        """The edited hidden state, y [..., d]."""
        r = self.rotation(p)
        return y + (p["b"] - y @ r.mT) @ r
