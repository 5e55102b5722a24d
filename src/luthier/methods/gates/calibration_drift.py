"""Calibration: a model that is as sure as before may not be wrong more often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.core.contracts.examination import Batch
from luthier.core.contracts.gate import Gate
from luthier.core.sites.answers import answers, rows_of


@dataclass(frozen=True)
class CalibrationDrift(Gate):
    """worsening = mean over rows of (p' - h')² - (p₀ - h₀)², p the probability of the likeliest label, h = 1 if right

    The Brier score of the likeliest answer: unlike the binned calibration error it is a mean of rows, so that its
    interval is one of paired rows. A probe is a row; its labels (tokens, or its class) are averaged.
    """

    paper = "Brier 1950; Guo et al. 2017, arXiv 1706.04599"
    unit: ClassVar[str] = "Brier score"
    covers: ClassVar[tuple[str, ...]] = ("calibration",)

    tolerance: float = 0.02
    """Largest rise of the Brier score that may be released."""

    def look(self, subject):
        subject.examples(self.data or "")

    def measure(self, subject):
        batches = subject.labelled(self.data or "")
        return subject.compared(lambda model: brier(model, batches))


def brier(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """[rows]: the mean squared distance of confidence and correctness over each row's labels."""
    found, rows = answers(model, batches), rows_of(batches)
    errors = torch.zeros(rows, dtype=found.hit.dtype).index_add(0, found.row, (found.confidence - found.hit) ** 2)
    return errors / torch.bincount(found.row, minlength=rows).clamp(min=1)
