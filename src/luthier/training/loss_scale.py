"""Loss scaling, for a float16 base: without it the smallest gradients of activations would be zeros."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError
from luthier.core.records import recorded, write_json
from luthier.training.spec import Run

STATE = "loss_scale.json"
"""The file of a checkpoint that holds the scale."""
CURVES = (("loss_scale",),)
LARGEST, PATIENCE = 2.0**15, 2000
"""The scale at the start, the largest power of two that float16 has; steps without an overflow until it doubles."""


class LossScale:
    """The factor S of the loss in the backward pass, by which gradients are divided behind it.

    S halves when a gradient is not finite, and that step is left out; after 2,000 steps in a row S doubles, up to where
    it began (Micikevicius
    et al. 2018, arXiv 1710.03740, section 3.2). A power of two, so what neither overflows nor vanishes is exact.
    torch's GradScaler does the same around an optimiser's step; here the gradients are divided ahead of clipping,
    penalties and updates, all of which go by their size, and S begins within float16's range.
    """

    def __init__(self) -> None:
        self.factor, self.good = LARGEST, 0

    def scaled(self, loss: Tensor) -> Tensor:
        """Returns the loss as it is, whose gradient is S times as large."""
        found: Any = _Scaled.apply(loss.float(), self.factor)
        return found

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Divides the gradients; where one is not finite, drops all, halves S and returns False.

        Every process comes to the same, as gradients are summed over processes before.
        """
        held = [p for p in parameters if p.grad is not None]
        grads: list[Any] = [p.grad for p in held]
        if not grads or math.isfinite(get_total_norm(grads, math.inf)):
            for grad in grads:
                grad.mul_(1 / self.factor)
            self.good += 1
            if self.good == PATIENCE:
                self.factor, self.good = min(2 * self.factor, LARGEST), 0
            return True
        for parameter in held:
            parameter.grad = None
        self.factor, self.good = self.factor / 2, 0
        return False

    @property
    def spent(self) -> bool:
        """Whether gradients are not finite even of a loss that is not scaled."""
        return self.factor < 1

    def save(self, folder: Path) -> None:
        """Writes the scale beside a checkpoint's tensors."""
        write_json(folder / STATE, {"factor": self.factor, "good": self.good})

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        with recorded(folder / STATE) as kept:
            self.factor, self.good = float(kept["factor"]), int(kept["good"])


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, factor):  # pyright: ignore
        ctx.factor = factor
        return loss.clone()

    @staticmethod
    def backward(ctx, slope):  # pyright: ignore
        return slope * ctx.factor, None


def check_scaled(run: Run) -> None:
    """Raises for what takes gradients of its own, which nobody scales, on a float16 base."""
    if run.training.precision != "float16":
        return
    update, first = type(run.update), (run.ranks, run.init)
    own = {
        f"{run.objective.name()} (objective)": run.objective.steered,
        f"{run.update.name()} (update)": run.update.rehearses
        or any(vars(Update)[name] is not getattr(update, name) for name in ("begin", "watches", "probes", "penalties")),
        "the penalty": run.penalty is not None,
        "noise_scale": run.training.noise_scale,
        **{f"{each.name()} (ranks, init)": "gradient" in each.needs for each in first if each is not None},
    }
    if name := next((name for name, goes in own.items() if goes), None):
        raise LuthierError(
            f"{name} goes by gradients that are taken beside the loss's, and in float16 small ones are zeros; train in "
            "bfloat16 or float32 (precision)."
        )
