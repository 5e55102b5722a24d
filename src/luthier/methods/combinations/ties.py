"""TIES: trim, elect a sign, take the mean of those that agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.core.contracts.combination import Combination
from luthier.core.numerics.delta import Delta


@dataclass(frozen=True)
class TIES(Combination):
    """δ = λ Σ_{i in S} w_i δ̂_i / Σ_{i in S} |w_i|, S = {i: sign δ̂_i = sign Σ w_j δ̂_j}

    δ̂ keeps the `density` share of each tensor's entries that is largest in magnitude, at least one. An entry whose
    sum is 0 takes the sign that most entries of its tensor have. The authors trim over the whole model at once; here,
    as in mergekit, each tensor is trimmed alone, so that tensors may come one after the other (of n entries
    int(density n) stay; the authors' threshold lets one more through). The divisor takes |w_i|,
    so that a negative weight stays a subtraction.
    """

    paper = "Yadav et al. 2023, arXiv 2306.01708"
    neutral: ClassVar = {"density": 1.0, "scale": 1.0}

    density: float = 0.2
    """Share of the entries of each delta that is kept."""
    scale: float = 1.0
    """The factor λ on the mean."""

    def check(self):
        self.within("density", 0, 1)

    def merge(self, deltas, weights, at):
        trimmed = torch.stack([w * self._trim(d).dense() for d, w in zip(deltas, weights, strict=True)])
        elected = trimmed.sum(0).sign()
        elected = torch.where(elected == 0, elected.sum().sign(), elected)
        agrees = (trimmed.sign() == elected) & (trimmed != 0)
        size = torch.tensor(weights, dtype=trimmed.dtype).abs().reshape(-1, *[1] * len(at.shape))
        mean = (trimmed * agrees).sum(0) / torch.where(agrees, size, 0).sum(0).clamp(
            min=torch.finfo(trimmed.dtype).tiny
        )
        return Delta.dense_of(self.scale * mean)

    def _trim(self, delta: Delta) -> Delta:
        count = torch.Size(delta.shape).numel()
        return delta if self.density == 1 or delta.is_zero else delta.top(max(1, int(self.density * count)))
