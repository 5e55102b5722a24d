"""DoRA: the direction of the weight moves by a low-rank change, its length is learned apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import zeros
from torch.linalg import vector_norm

from luthier.core.contracts.form import Form, kaiming, rank_scale
from luthier.core.numerics.matrix import gain


@dataclass(frozen=True)
class DoRA(Form):
    """W' = m (W + s B A) / ‖W + s B A‖

    The norm is taken over each row of W [d_out, d_in]; m [d_out] starts as the norms of W, so it starts as a
    no-op. The norm counts as a constant in the gradient (section 4.3 of the paper). There is no dropout: the
    normalised weight is one matrix, applied once. A row of zeros starts as it is, and B may lead it away from there.
    """

    paper = "Liu et al. 2024, arXiv 2402.09353"
    family = "reparameterisation"
    kinds = ("affine", "param")
    down_projection = "A"
    needs = ("weight",)

    rank: int = 8
    """Rank of the change of direction."""
    alpha: float = 16.0
    """Numerator of the scale s."""
    scaling: Literal["lora", "rslora"] = "lora"
    """Rule of the scale: alpha / rank, or alpha / sqrt(rank)."""

    @property
    def scale(self) -> float:
        """The scale s."""
        return rank_scale(self.alpha, self.rank, self.scaling)

    def init(self, site, stats):
        factors = {"A": kaiming(self.rank, site.d_in), "B": zeros(site.d_out, self.rank)}
        return factors | {"m": vector_norm(stats["weight"].to(factors["A"].dtype), dim=1)}

    def weight(self, p, w):
        """The new weight [d_out, d_in]."""
        moved = w + self.scale * p["B"] @ p["A"]
        return gain(p["m"], vector_norm(moved.detach(), dim=1))[:, None] * moved
