"""NoReFT: LoReFT's equation without the orthonormality."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros

from luthier.core.contracts.form import dropout, kaiming
from luthier.methods.forms._reft import ReFT


@dataclass(frozen=True)
class NoReFT(ReFT):
    """Φ(h) = h + W₂ᵀ (W₁ h + b - W₂ h)

    W₁ and W₂ are rank x d, b has rank entries. The start, W₁ = W₂ and b = 0, is ours: a no-op.
    """

    paper = "Wu, Arora et al. 2024, arXiv 2404.03592"
    family = "additive"

    def init(self, site, stats):
        start = kaiming(self.rank, site.d_out)
        return {"W1": start, "W2": start.clone(), "b": zeros(self.rank)}

    def post(self, p, x, y):
        """The edited hidden state, y [..., d]."""
        return dropout(y + (y @ (p["W1"] - p["W2"]).mT + p["b"]) @ p["W2"], self.dropout)
