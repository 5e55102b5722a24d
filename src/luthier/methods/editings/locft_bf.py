"""LocFT-BF: localised fine-tuning, breadth first: all facts again and again, in mini-batches."""

from __future__ import annotations

import random
from dataclasses import dataclass

from luthier.core.contracts.editing import Editing


@dataclass(frozen=True)
class LocFTBF(Editing):
    """L = mean over facts of (- mean over the target's tokens and EOS of log p), in shuffled batches, epoch by epoch

    A step is skipped where the loss of its batch is below `skip`, and editing ends after an epoch whose mean loss is
    below `stop`. One tensor is trained, by Adam; the prompt is never in the loss.
    """

    paper = "Yang et al. 2025 (fine-tuning done right in model editing), arXiv 2509.22072 (code: ICT-STAR/LocFT)"

    epochs: int = 25
    """Most epochs."""
    batch: int = 100
    """Facts of a step."""
    skip: float = 1e-2
    """The loss of a batch below which it makes no step."""
    stop: float = 1e-2
    """The mean loss of an epoch below which editing ends."""

    def check(self):
        super().check()
        self.within("epochs", 1)
        self.within("batch", 1)
        self.within("skip", 0.0)
        self.within("stop", 0.0)

    def rounds(self, count, seed):
        for epoch in range(self.epochs):
            order = random.Random(f"{seed} {epoch}").sample(range(count), count)
            yield [order[at : at + self.batch] for at in range(0, count, self.batch)]

    def skips(self, loss):
        return loss < self.skip

    def over(self, mean):
        return mean < self.stop
