"""LoReFT: edit the hidden state inside a learned low-rank subspace."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros

from luthier.core.contracts.form import dropout
from luthier.methods.forms._reft import RotatedReFT, stored


@dataclass(frozen=True)
class LoReFT(RotatedReFT):
    """Φ(h) = h + Rᵀ (W h + b - R h), R with orthonormal rows

    R and W are rank x d, b has rank entries. R is the Cholesky orthonormalisation of the stored tensor, so its
    rows stay orthonormal to rounding at every step without Householder products; it starts at R / 2, so that a step
    turns R as far as pyreft's does at the same learning rate. The source leaves the start of
    W open (its code draws a fresh linear layer, which changes the model before the first step); here W = R and
    b = 0, a no-op.
    """

    paper = "Wu, Arora et al. 2024, arXiv 2404.03592"
    family = "additive"

    def init(self, site, stats):
        start = self.start(site)
        return {"R": stored(start), "W": start, "b": zeros(self.rank)}

    def post(self, p, x, y):
        """The edited hidden state, y [..., d]."""
        r = self.rotation(p)
        return dropout(y + (y @ (p["W"] - r).mT + p["b"]) @ r, self.dropout)
