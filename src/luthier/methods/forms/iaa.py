"""IAA: a chain of modules beside the blocks, which connects what modules inside them leave apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import zeros

from luthier.core.contracts.form import Form, dropout, kaiming
from luthier.methods.forms.bottleneck import ACTIVATIONS


@dataclass(frozen=True)
class IAA(Form):
    """a_l = a_{l-1} + s (U_l σ(D_l h_l + b_l) + c_l), a_0 = 0; the last block gives h_L + a_L

    h_l is what block l gives, D_l [dim, d] and U_l [d, dim]; U and c start at zero, so it starts as a no-op. Modules
    inside the blocks alone are *scattered*: each sees its gradient through all that is frozen above it. The chain
    *connects* them: the loss reaches h_l, and with it every module inside a block below, through D_l and U_l alone. It
    goes with such modules, as the recipe's bottleneck adapters (also). The blocks never read the chain, so it costs no
    further pass through them.

    Rebuilt from the paper's description, which leaves open what an aside module reads: here the block's output, and
    `reads = chain` adds the state so far (U σ(D (h_l + a_{l-1}))).
    """

    paper = "Ma et al. 2022 (CIKM), arXiv 2208.09847 (rebuilt from its description)"
    family = "additive"
    kinds = ("stream",)
    where = "stream"
    linear = False

    dim: int = 32
    """Width of each module of the chain."""
    reads: Literal["block", "chain"] = "block"
    """What a module reads: the block's output, or that and the state so far."""
    activation: Literal["gelu", "relu"] = "gelu"
    """The nonlinearity σ."""
    scale: float = 1.0
    """The scale s of what each module adds."""
    dropout: float = 0.0
    """Dropout on what a module reads."""

    def init(self, site, stats):
        down, up = kaiming(self.dim, site.d_out), zeros(site.d_out, self.dim)
        return {"down": down, "down_bias": zeros(self.dim), "up": up, "up_bias": zeros(site.d_out)}

    def aside(self, p, h, a):
        """The state behind the block that gives h, both [..., d]."""
        read = dropout(h + a if self.reads == "chain" else h, self.dropout)
        inner = ACTIVATIONS[self.activation](read @ p["down"].mT + p["down_bias"])
        return a + self.scale * (inner @ p["up"].mT + p["up_bias"])
