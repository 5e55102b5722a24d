"""MoSA: a bottleneck adapter whose up-projection is divided among experts, one of which acts in each pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import zeros

from luthier.core.contracts.form import Form, dropout, kaiming
from luthier.core.errors import LuthierError
from luthier.methods.forms.bottleneck import ACTIVATIONS


@dataclass(frozen=True)
class MoSA(Form):
    """y' = y + s (Σ_j M_j ∘ U) σ(D h + a) + s c, in training (M_j ∘ U) and (m_j ∘ c) of one j drawn for each pass

    The binary masks M_j are disjoint and cover U [d_out, dim]: each weight belongs to one of the experts, drawn once
    and saved (`part`), alike many to each; so it is with the bias c. D [dim, d_in] is shared, as in the authors'
    scripts (SHARE "down"). Their experts are copies of one adapter, each trained in its own entries, and merging takes
    each entry from its expert. Here U starts at zero, so one dense U holds them all and is what acts outside training:
    a plain bottleneck adapter of the same size and cost. Take the objective
    `two_passes` along, whose passes draw an expert each at every site.

    The authors' place is beside each MLP (where="output(mlp)"). h = x beside a module (parallel: AdaptFormer, their
    main setting, without its layer norm) or its output y (sequential: Pfeiffer). Masks are drawn at random, as theirs.
    """

    paper = "Zhang et al. 2023, arXiv 2312.02923 (code: Theia-4869/MoSA)"
    family = "additive"
    kinds = ("stream",)
    where = "stream"
    linear = False
    frozen = ("part", "bias_part")
    lr = 1e-3

    dim: int = 64
    """Width of the bottleneck."""
    experts: int = 4
    """Experts that the up-projection is divided among; one is a plain bottleneck adapter."""
    insertion: Literal["parallel", "sequential"] = "parallel"
    """What the adapter reads: the input or the output of the module."""
    activation: Literal["gelu", "relu"] = "gelu"
    """The nonlinearity σ."""
    scale: float = 1.0
    """The scale s of the adapter's output."""
    dropout: float = 0.0
    """Dropout behind σ."""

    def check(self):
        super().check()
        if self.experts > 255:
            raise LuthierError(f"mosa.experts is {self.experts}; expected at most 255.")

    def eval_mode(self):
        return replace(super().eval_mode(), experts=1)

    def init(self, site, stats):
        width = site.d_out if self.insertion == "sequential" else site.d_in
        if self.experts > site.d_out:
            raise LuthierError(f"mosa has {self.experts} experts for the {site.d_out} outputs of {site}; take fewer.")
        return {
            "down": kaiming(self.dim, width),
            "down_bias": zeros(self.dim),
            "up": zeros(site.d_out, self.dim),
            "up_bias": zeros(site.d_out),
            "part": partition(self.experts, site.d_out, self.dim),
            "bias_part": partition(self.experts, site.d_out),
        }

    def post(self, p, x, y):
        """The output after the adapter, y [..., d_out]."""
        up, bias = p["up"], p["up_bias"]
        if self.experts > 1:
            chosen = torch.randint(self.experts, (), device=up.device)
            up, bias = up * (p["part"] == chosen), bias * (p["bias_part"] == chosen)
        h = y if self.insertion == "sequential" else x
        inner = dropout(ACTIVATIONS[self.activation](h @ p["down"].mT + p["down_bias"]), self.dropout)
        return y + self.scale * (inner @ up.mT + bias)


def partition(experts: int, *shape: int) -> torch.Tensor:
    """Draws the expert of each entry, alike many for each: [*shape], numbers below `experts`."""
    count = torch.Size(shape).numel()
    return (torch.randperm(count) % experts).view(shape).to(torch.uint8)
