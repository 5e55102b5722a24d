"""S2FT: a few channels or heads of a layer, trained as one dense slice of its weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, zeros
from torch.linalg import vector_norm

from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError


def _random(form: S2FT, sizes: Tensor, layer: int) -> Tensor:
    seed = torch.initial_seed() if form.seed is None else form.seed
    generator = torch.Generator().manual_seed((1000 * seed + layer) % 2**63)
    return torch.randperm(len(sizes), generator=generator, device="cpu")


RULES: dict[str, Callable[[S2FT, Tensor, int], Tensor]] = {
    "random": _random,
    "largest": lambda form, sizes, layer: sizes.argsort(descending=True),
    "smallest": lambda form, sizes, layer: sizes.argsort(),
}
"""How the units are put in order: (form, norms of the units, index of the block) -> units, the chosen ones first."""


@dataclass(frozen=True)
class S2FT(Form):
    """W'[:, i] = W[:, i] + Δ on chosen input channels i (side = input); W'[i, :] = W[i, :] + Δ on output channels

    Δ, [d_out, chosen] or [chosen, d_in], starts at zero; the index is frozen and stored. On the side of the inputs the
    backward pass keeps x[..., i] and no more of x. Adam on Δ is Adam on the slice itself; weight decay would pull Δ to
    zero, and the slice to where it was.

    The authors permute coupled weights (up, gate and down; values and output) alike, so that the chosen channels lie
    together and a view of W can be trained. Here the slice is gathered by its index: no weight of the base moves,
    detaching is exact, quantised bases serve, and nothing is coupled that could be permuted wrongly (their code counts
    key-value heads in the order of the query heads). What is trained and computed is the same.

    The recipe takes 3% of the inputs of each down projection, where the authors draw as many over all layers together,
    so that theirs differ from layer to layer; a form's own default is every linear layer, since layers have other
    names in other models.

    Whole heads: `units` is the number of key-value heads, for `side="output"` at values and `side="input"` at the
    output projection, where a unit is all query heads that read one key-value head. At random, layers of one block with
    as many units choose the same ones.
    """

    paper = "Yang et al. 2024, arXiv 2412.06289 (code: Infini-AI-Lab/S2FT)"
    family = "selective"
    needs = ("weight",)
    frozen = ("index",)
    lr = 2e-4
    depends: ClassVar = {"seed": ("rule", "random")}

    ratio: float = 0.03
    """Share of the units that is trained; at least one."""
    side: Literal["input", "output"] = "input"
    """Whether a unit is made of input channels (columns of W) or of output channels (rows)."""
    rule: Literal["random", "largest", "smallest"] = "random"
    """Which units: random ones, or those of the largest or smallest norm in W."""
    units: int | None = None
    """Equal parts that the channels form, as heads do. Default: each channel is its own."""
    seed: int | None = None
    """Fixes random units. Default: the seed of the run, as `torch.manual_seed` was given it."""

    def check(self) -> None:
        super().check()
        self.above("ratio", 0, 1)

    def init(self, site, stats):
        inputs = self.side == "input"
        width, other = (site.d_in, site.d_out) if inputs else (site.d_out, site.d_in)
        units = width if self.units is None else self.units
        if width % units:
            raise LuthierError(f"s2ft: {site} has {width} {self.side} channels, which are not {units} equal units.")
        weight = stats["weight"].mT if inputs else stats["weight"]
        order = RULES[self.rule](self, vector_norm(weight.reshape(units, -1), dim=1), site.layer or 0)
        chosen = order[: max(1, round(self.ratio * units))].to(torch.get_default_device()).sort().values
        index = (chosen[:, None] * (width // units) + torch.arange(width // units)).flatten()
        return {"index": index, "delta": zeros(other, len(index)) if inputs else zeros(len(index), other)}

    def post(self, p, x, y):
        """The output with the slice's change, x [..., d_in] and y [..., d_out]."""
        if self.side == "input":
            return y + x[..., p["index"]] @ p["delta"].mT
        return y.index_add(-1, p["index"], x @ p["delta"].mT)

    def factors(self, p, w):
        axis = 1 if self.side == "input" else 0
        picked = torch.eye(w.shape[axis], dtype=w.dtype, device=w.device)[p["index"]]
        return (p["delta"], picked) if self.side == "input" else (picked.mT, p["delta"])
