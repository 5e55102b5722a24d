"""Model Breadcrumbs: neither the outliers nor the small change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.core.contracts.combination import Combination, weighted
from luthier.core.numerics.delta import Delta


@dataclass(frozen=True)
class Breadcrumbs(Combination):
    """δ = α Σ w_i m_i ⊙ δ_i; in each row m_i drops the γ largest of |δ_i| and keeps the next β

    A row is the last axis, a vector is one row. At least one entry of a row is kept, so that no small tensor loses
    its whole delta. γ, β and α count shares: of d entries int(γ d) are dropped and int(β d) kept.
    """

    paper = "Davari, Belilovsky 2023 (ECCV 2024), arXiv 2312.06795"
    neutral: ClassVar = {"gamma": 0.0, "beta": 1.0, "alpha": 1.0}

    gamma: float = 0.006
    """Share of each row, the largest, that is dropped."""
    beta: float = 0.15
    """Share of each row, the next largest, that is kept."""
    alpha: float = 0.2
    """Factor on the sum."""

    def check(self):
        self.within("gamma", 0, 1)
        self.within("beta", 0, 1)

    def merge(self, deltas, weights, at):
        kept = [d if d.is_zero or (self.gamma == 0 and self.beta == 1) else self._masked(d) for d in deltas]
        return self.alpha * weighted(kept, weights)

    def _masked(self, delta: Delta) -> Delta:
        full = delta.dense()
        if not full.dim():
            return delta
        width = full.shape[-1]
        first = min(int(self.gamma * width), width - 1)
        count = max(1, int(self.beta * width))
        kept = full.abs().topk(min(first + count, width)).indices[..., first:]
        return Delta.dense_of(torch.zeros_like(full).scatter(-1, kept, full.gather(-1, kept)))
