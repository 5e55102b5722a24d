"""LiNeS: little of the change in shallow blocks, all of it in deep ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.combination import Combination, weighted
from luthier.methods.combinations._then import following


@dataclass(frozen=True)
class LiNeS(Combination):
    """δ_l = λ_l then(δ_1, …), λ_l = α + β l / (L - 1)

    l is the block of a tensor, of L; tensors outside the blocks get α. With one input, α is what is left of the
    change in the first block (0.1 unless told, the authors' example) and β = 1 - α leaves the last block unchanged.
    With T of them α = ‖Σ w_i δ_i‖₁ / (T ‖then(…)‖₁) unless told: that of a mean, whatever combined them. The authors
    search β where they merge; its default there is ours.
    """

    paper = "Wang et al. 2024 (ICLR 2025), arXiv 2410.17146"
    surveys = True
    neutral: ClassVar = {"alpha": 1.0, "beta": 0.0}

    alpha: float | None = None
    """α, the factor of the first block and of what lies outside the blocks. Default: 0.1, or by norms."""
    beta: float | None = None
    """β, what is added to it up to the last block. Default: 1 - α."""
    then: str = "task_arithmetic"
    """The combination that is scaled, where there are several inputs, such as task_arithmetic or ties."""

    def check(self):
        following(self.then, self)

    def survey(self, deltas, weights, at):
        if self.alpha is not None or len(deltas) == 1:
            return {}
        merged = following(self.then, self).merge(deltas, weights, at)
        summed = weighted(deltas, weights)
        return {"sum": float(summed.dense().abs().sum()), "merged": float(merged.dense().abs().sum())}

    def merge(self, deltas, weights, at):
        alpha = self._alpha(len(deltas), at.totals)
        beta = 1 - alpha if self.beta is None else self.beta
        depth = 0.0
        if at.site.layer is not None:
            depth = at.site.layer / (at.depth - 1) if at.depth > 1 else 1.0
        return (alpha + beta * depth) * following(self.then, self).merge(deltas, weights, at)

    def _alpha(self, count: int, totals) -> float:
        if self.alpha is not None:
            return self.alpha
        return 0.1 if count == 1 else totals["sum"] / (count * (totals["merged"] or 1.0))
