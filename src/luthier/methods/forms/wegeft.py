"""WeGeFT: the change of a weight is generated from the weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import zeros

from luthier.core.contracts.form import Form, dropout, kaiming


@dataclass(frozen=True)
class WeGeFT(Form):
    """W' = W (I + s φ ψ)

    φ is d_in x rank (zeros), ψ is rank x d_in (Kaiming uniform, a = sqrt 5), s = alpha / rank: a no-op at the
    start. It is an edit of the layer's input, x̂ = x (I + s ψᵀ φᵀ), so nothing of W is read and any base weight,
    quantised ones included, serves. As LoRA it is B = W φ, A = ψ. `share="type"`, one (φ, ψ) for each module type
    over all layers, is what the paper's tables use. The authors drop entries of W; here dropout falls on x
    before ψ.
    """

    paper = "Savadikar, Song, Wu 2025 (ICML), arXiv 2312.00700"
    family = "reparameterisation"
    kinds = ("affine", "param")
    down_projection = "psi"

    rank: int = 8
    """Rank of the generator φψ."""
    alpha: float = 16.0
    """Numerator of the scale: s = alpha / rank."""
    dropout: float = 0.0
    """Dropout on x before ψ."""

    @property
    def scale(self) -> float:
        """The scale s."""
        return self.alpha / self.rank

    def init(self, site, stats):
        return {"phi": zeros(site.d_in, self.rank), "psi": kaiming(self.rank, site.d_in)}

    def pre(self, p, x):
        """x + s (x ψᵀ) φᵀ, x [..., d_in]."""
        return x + (dropout(x, self.dropout) @ p["psi"].mT) @ (self.scale * p["phi"]).mT

    def factors(self, p, w):
        return w @ (self.scale * p["phi"]), p["psi"]
