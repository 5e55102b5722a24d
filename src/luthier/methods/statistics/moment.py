"""The second moment of what enters a site."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.statistic import Statistic, rows_of
from luthier.core.numerics.wide import exact


@dataclass(frozen=True)
class Moment(Statistic):
    """C = E[x xᵀ]

    Gives `moment` [d_in, d_in], float64: the mean over all tokens that count. Each batch is multiplied in float32
    (or in the activations' wider format) and added in float64.
    """

    paper = "the context of CorDA (Yang et al. 2024, arXiv 2406.05223) and of input-aware compression"

    def begin(self):
        return 0, 0

    def update(self, held, x, mask):
        rows = rows_of(x, mask)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return held[0] + exact(rows.mT @ rows), held[1] + len(rows)

    def result(self, held):
        return {"moment": (held[0] / held[1]).cpu()}
