"""Task arithmetic: deltas are vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.combination import Combination, weighted


@dataclass(frozen=True)
class TaskArithmetic(Combination):
    """δ = λ Σ w_i δ_i

    Low-rank deltas are stacked, so that the result is exact and of the sum of their ranks; sparse ones are united.
    A negative weight takes a skill away.
    """

    paper = "Ilharco et al. 2022, arXiv 2212.04089"
    neutral: ClassVar = {"scale": 1.0}

    scale: float = 1.0
    """The factor λ on the sum."""

    def merge(self, deltas, weights, at):
        return self.scale * weighted(deltas, weights)
