"""Bottleneck adapters: a small network beside or behind a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, zeros
from torch.nn import functional

from luthier.core.contracts.form import Form, dropout, kaiming

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": functional.tanh,
    "identity": lambda h: h,
}


@dataclass(frozen=True)
class Bottleneck(Form):
    """y' = y + s (U σ(D h + a) + c), h = y (sequential) or x (parallel)

    D is dim x d_in (Kaiming uniform), U is d_out x dim (zeros), so it starts as a no-op and D has a gradient
    from the second step on. Sequential reads the module's output (Houlsby, Pfeiffer), parallel its input
    (He et al.). Behind each attention and MLP it is `where="output(self_attn), output(mlp)"`; the default is
    one behind each block.
    """

    paper = "Houlsby et al. 2019, arXiv 1902.00751; He et al. 2022, arXiv 2110.04366"
    family = "additive"
    kinds = ("stream", "affine")
    where = "stream"
    linear = False

    dim: int = 32
    """Width of the bottleneck."""
    insertion: Literal["sequential", "parallel"] = "sequential"
    """What the adapter reads: the output or the input of the module."""
    activation: Literal["relu", "gelu", "silu", "tanh", "identity"] = "relu"
    """The nonlinearity σ; identity is LiST's adapter."""
    scale: float = 1.0
    """The scale s of the adapter's output."""
    dropout: float = 0.0
    """Dropout on h."""

    def init(self, site, stats):
        width = site.d_out if self.insertion == "sequential" else site.d_in
        return {
            "down": kaiming(self.dim, width),
            "down_bias": zeros(self.dim),
            "up": zeros(site.d_out, self.dim),
            "up_bias": zeros(site.d_out),
        }

    def post(self, p, x, y):
        """The output after the adapter, y [..., d_out]."""
        h = dropout(y if self.insertion == "sequential" else x, self.dropout)
        inner = ACTIVATIONS[self.activation](h @ p["down"].mT + p["down_bias"])
        return y + self.scale * (inner @ p["up"].mT + p["up_bias"])
