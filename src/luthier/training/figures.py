"""The figures that an objective gives beside its loss, over the batches of a step or of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.core.contracts.objective import Figures
from luthier.core.numerics.wide import widened


class FigureSums:
    """Sums of an objective's figures over batches."""

    def __init__(self, curves: Sequence[Sequence[str]]) -> None:
        self.sums = {name: [0.0, 0] for together in curves for name in together}

    def add(self, figures: Figures) -> None:
        """Those of one batch."""
        for name, values in figures.items():
            self.sums[name][0] += float(widened(values).sum())
            self.sums[name][1] += values.numel()

    def held(self) -> Tensor:
        """Returns (sum, count) of each, [figures, 2]."""
        return torch.tensor(list(self.sums.values()), dtype=torch.float64)

    def means(self, held: Tensor) -> dict[str, float]:
        """Returns the mean of each that was told of some row."""
        found = zip(self.sums, held.tolist(), strict=True)
        return {name: total / count for name, (total, count) in found if count}
