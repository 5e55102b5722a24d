"""Composable sparse fine-tuning: sparse changes of different kinds are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.core.contracts.combination import Combination, weighted
from luthier.core.numerics.delta import Delta


@dataclass(frozen=True)
class Composable(Combination):
    """θ = θ0 + Σ w_i φ_i, φ_i = top_k(δ_i)

    A task's and a language's sparse change meet in few entries and are added. `density` makes deltas that are not
    sparse so, k = density x entries of each tensor (the paper trains again with the k entries of the whole model that
    moved most; that is training, this is what comes after).
    """

    paper = "Ansell et al. 2022, arXiv 2110.07560"
    neutral: ClassVar = {"density": None}

    density: float | None = None
    """Share of each tensor's entries that is kept of each delta. Default: deltas as they are."""

    def check(self):
        self.within("density", 0, 1)

    def merge(self, deltas, weights, at):
        return weighted([self._sparse(d) for d in deltas], weights)

    def _sparse(self, delta: Delta) -> Delta:
        if self.density is None or delta.is_zero:
            return delta
        return delta.top(max(1, int(self.density * torch.Size(delta.shape).numel())))
