"""DiReFT: LoReFT without the constraint, as the paper defines it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros

from luthier.core.contracts.form import dropout, kaiming
from luthier.methods.forms._reft import ReFT


@dataclass(frozen=True)
class DiReFT(ReFT):
    """Φ(h) = h + W₂ᵀ (W₁ h + b)

    W₁ and W₂ are rank x d, b has rank entries; nothing is orthogonal. This is the paper's DiReFT; pyreft calls
    it NodireftIntervention, and its class named Direft keeps W₂ orthonormal. The start, W₂ = 0, is ours: a no-op.
    """

    paper = "Wu, Arora et al. 2024, arXiv 2404.03592"
    family = "additive"

    def init(self, site, stats):
        r, d = self.rank, site.d_out
        return {"W1": kaiming(r, d), "W2": zeros(r, d), "b": zeros(r)}

    def post(self, p, x, y):
        """The edited hidden state, y [..., d]."""
        return dropout(y + (y @ p["W1"].mT + p["b"]) @ p["W2"], self.dropout)
