"""Held loss: text and tasks that the model could predict before fine-tuning and may not have forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from luthier.core.contracts.examination import Batch
from luthier.core.contracts.gate import Gate
from luthier.core.sites.answers import answers, rows_of


@dataclass(frozen=True)
class HeldLoss(Gate):
    """worsening = mean over rows of L(θ') - L(θ₀), L the mean loss of a row's labels in nats

    A probe is a row: a held text, or a row of another task with its right answer before both models.
    """

    paper = "McCloskey and Cohen 1989, catastrophic forgetting"
    unit: ClassVar[str] = "nats"
    covers: ClassVar[tuple[str, ...]] = ("other tasks",)

    tolerance: float = 0.05
    """Largest rise of the mean loss, in nats, that may be released."""

    def look(self, subject):
        subject.examples(self.data or "")

    def measure(self, subject):
        batches = subject.labelled(self.data or "")
        return subject.compared(lambda model: losses(model, batches))


def losses(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """[rows]: the mean loss of each row's labels, in nats."""
    sums = answers(model, batches).by_row(rows_of(batches))
    return sums[:, 0] / sums[:, 2].clamp(min=1)
