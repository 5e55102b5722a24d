"""The contract of an editing: in which order facts are written into a model, and when it is enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from luthier.core.contracts.component import Component


@dataclass(frozen=True)
class Editing(Component):
    """The schedule of steps on facts; the loss is - log p of a target's tokens, meaned by fact and then by batch.

    rounds(count, seed) -> batches by round     places of facts below `count`, drawn by the seed
    skips(loss) -> bool                         whether a batch of this loss makes no step
    round_over(loss) -> bool                    whether the rest of the round is left out behind such a batch
    over(mean) -> bool                          whether editing ends behind a round of this mean loss
    """

    lr: float = 5e-4
    """Learning rate of Adam."""

    def check(self) -> None:
        self.above("lr", 0.0)

    def rounds(self, count: int, seed: int) -> Iterator[list[list[int]]]:
        """Yields the batches of each round; what is drawn follows from the arguments alone."""
        raise NotImplementedError(f"{type(self).__name__} must define rounds")

    def skips(self, loss: float) -> bool:
        """Returns whether a batch is so well known that it makes no step."""
        return False

    def round_over(self, loss: float) -> bool:
        """Returns whether the rest of a round is left out."""
        return False

    def over(self, mean: float) -> bool:
        """Returns whether editing ends after a round."""
        return False
