"""The gradient of a frozen weight."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.statistic import Statistic


@dataclass(frozen=True)
class Gradient(Statistic):
    """G = mean over batches of dL/dW

    Gives `gradient` [d_out, d_in], float32: the loss of a batch is its own mean, so every batch weighs the same. One
    weight's gradient lives at a time; the sums are as large as the weights measured.
    """

    paper = "the first step of full fine-tuning, as LoRA-GA (Wang et al. 2024, arXiv 2407.05000) reads it"
    reads = "gradients"

    def begin(self):
        return 0, 0

    def update(self, held, x, mask):
        return held[0] + x.float(), held[1] + 1

    def result(self, held):
        return {"gradient": (held[0] / held[1]).cpu()}
