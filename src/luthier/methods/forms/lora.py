"""LoRA: a low-rank change of the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import zeros

from luthier.core.contracts.form import Form, dropout, kaiming, rank_scale


@dataclass(frozen=True)
class LoRA(Form):
    """W' = W + s B A

    A is rank x d_in (Kaiming uniform, a = sqrt 5), B is d_out x rank (zeros), so it starts as a no-op;
    s = alpha / rank, or alpha / sqrt(rank) with the rsLoRA rule, which keeps the size of the change when the
    rank grows. Works on linear layers, embedding tables (A is looked up) and each expert of a 3-D parameter.
    """

    paper = "Hu et al. 2021, arXiv 2106.09685; rsLoRA: Kalajdzievski 2023, arXiv 2312.03732"
    family = "reparameterisation"
    kinds = ("affine", "embedding", "param")
    down_projection = "A"
    up_projection = "B"

    rank: int = 8
    """Rank of the change."""
    alpha: float = 16.0
    """Numerator of the scale s."""
    dropout: float = 0.0
    """Dropout on x before A."""
    scaling: Literal["lora", "rslora"] = "lora"
    """Rule of the scale: alpha / rank, or alpha / sqrt(rank)."""

    @property
    def scale(self) -> float:
        """The scale s."""
        return rank_scale(self.alpha, self.rank, self.scaling)

    def init(self, site, stats):
        return {"A": kaiming(self.rank, site.d_in), "B": zeros(site.d_out, self.rank)}

    def post(self, p, x, y):
        """y + s B A x, with x [..., d_in] and y [..., d_out]."""
        return y + (dropout(x, self.dropout) @ p["A"].mT) @ (self.scale * p["B"]).mT

    def factors(self, p, w):
        return self.scale * p["B"], p["A"]
