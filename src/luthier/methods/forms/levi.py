"""LEVI: a small model from scratch beside the frozen one, and heads that read layers of the one with the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, zeros

from luthier.core.contracts.form import ROW_INPUT, ROW_MASK, ROW_STATES, Form, dropout
from luthier.core.errors import LuthierError
from luthier.core.sites.inputs import dummy_inputs
from luthier.core.sites.select import select
from luthier.core.sites.structure import block_lists
from luthier.methods.forms._small import HEADS, fresh, patches, pooled, vector


@dataclass(frozen=True)
class LEVI(Form):
    """y' = mean_j y_j, y_j = y + A_j [h_j(x); g(x)] + b_j over `heads` layers j

    y is what the model's own head gives, h_j(x) what block j gives (its tokens averaged where y has none), and g(x) a
    transformer of `depth` blocks and width w that is trained from scratch on the model's input: ids through a table of
    its own, pictures and spectrograms by patches, sounds by frames. A_j is classes x (d + w) and starts at zero, so it
    starts as a no-op; g starts at random and has a gradient from the second step on. Layers are evenly spread, the last
    one among them. Without the columns of g it is the model alone, by several of its layers.

    The frozen model lacks what its pre-training passed over, g what the fine-tuning data do not show; a cue that is
    spurious in one of both weighs less in the two together. In the paper y_j is A_j [h_j; g] alone; the model's own
    head, which is linear in the last layer as a rule, adds no further function to that, and lets a head that is trained
    already stay what it is. The size of g and the number of layers are ours.
    """

    paper = "Roh et al. 2024 (ICML), arXiv 2402.04644 (rebuilt from its description)"
    family = "additive"
    kinds = ("stream",)
    where = "logits"
    linear = False
    sees = ("mask", "states", "input")
    gathers = True

    heads: int = 3
    """How many layers have a head, at most as many as there are."""
    width: int = 64
    """Width of the small model, a multiple of 4."""
    depth: int = 2
    """Blocks of the small model."""
    patch: int | None = None
    """Side of the small model's patches; a frame of sound has its square as samples. Default: 16; text has none."""
    pool: Literal["mean", "first"] = "mean"
    """How the tokens of a layer, and those of the small model, become one vector: their mean, or the first."""
    dropout: float = 0.0
    """Dropout on what the heads read."""

    def check(self):
        super().check()
        if self.width % HEADS:
            raise LuthierError(f"levi.width is {self.width}; expected a multiple of {HEADS}, its attention heads.")

    @property
    def side(self) -> int:
        """The side of a patch."""
        return self.patch or 16

    def layers_read(self, depth):
        count = min(self.heads, depth)
        return tuple(-(-depth * (i + 1) // count) - 1 for i in range(count))

    def gather(self, model, sites):
        """The width of the blocks, how many of them are read, and what enters the small model: ids or features."""
        stacks = block_lists(model)
        if len(stacks) != 1:
            raise LuthierError(f"levi reads one stack of blocks, and {type(model).__name__} has {len(stacks)} of them.")
        blocks = select(model, "stream")
        held: Any = model
        given = dummy_inputs(model)[held.main_input_name]
        table = held.get_input_embeddings() if not given.is_floating_point() else None
        if table is not None and self.patch is not None:
            raise LuthierError(f"levi.patch is {self.patch}, and {type(model).__name__} is given ids; leave it out.")
        entering = table.num_embeddings if table is not None else patches(given, self.side).shape[-1]
        sizes = blocks[-1].d_in, len(self.layers_read(len(blocks))), entering, int(table is not None)
        return {site.path: {"sizes": torch.tensor(sizes)} for site in sites}

    def init(self, site, stats):
        told = stats["sizes"].tolist() if "sizes" in stats else (site.d_in, self.heads, 1, 1)  # of what kind they are
        d, count, entering, ids = told
        heads = zeros(count, site.d_out, d + self.width)
        model = fresh(entering, bool(ids), self.width, self.depth)
        return {"heads": heads, "heads_bias": zeros(count, site.d_out)} | model

    def post(self, p, x, y):
        """The output y [rows, classes], or of each token [rows, tokens, classes], with the mean of the heads."""
        h, mask = p[ROW_STATES], p.get(ROW_MASK)
        h = self.of_rows(h, mask) if y.dim() == 2 else h
        g = vector(p, p[ROW_INPUT], mask, self.side, self.pool == "first")
        g = (g if y.dim() == 2 else g[:, None]).expand(*h.shape[:-1], self.width)
        read = dropout(torch.cat([h, g], -1), self.dropout)
        bias = p["heads_bias"].view(len(h), *[1] * (h.dim() - 2), -1)
        return y + (torch.einsum("j...d,jcd->j...c", read, p["heads"]) + bias).mean(0)

    def of_rows(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """One vector for each row of h [layers, rows, ..., d]."""
        h = h.flatten(2, -2)
        if mask is not None and mask.shape[1] != h.shape[2]:
            raise LuthierError(
                f"{self.name()} averages {h.shape[2]} tokens of a layer, and the batch was padded to {mask.shape[1]} "
                "samples, so that it is not known which are padding; use a batch of one row, or sounds of one length."
            )
        return pooled(h, mask, self.pool == "first")
