"""Fine-tuning transfer: what one base learnt, on another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.combination import Combination, weighted


@dataclass(frozen=True)
class Transfer(Combination):
    """θ = θ_t + λ Σ w_i (θ_s,i - θ_s)

    θ_s is the base that the inputs were fitted on, θ_t the one that they go to. Rows of an embedding table or a head
    that one of the two lacks count as zeros. It helps where one base grew out of the other and does harm where they
    were trained apart, so bases that are not related are refused. To fine-tune on from the result (recycling), train
    it further.
    """

    paper = "Lin et al. 2025, arXiv 2503.20110"
    moves = True
    neutral: ClassVar = {"scale": 1.0}

    scale: float = 1.0
    """The factor λ on the sum."""

    def fits(self, shape, at):
        return shape == at.shape or (at.vocabulary and shape[1:] == at.shape[1:] and shape[0] <= at.shape[0])

    def merge(self, deltas, weights, at):
        padded = [d.padded(at.shape[0]) if d.shape != at.shape else d for d in deltas]
        return self.scale * weighted(padded, weights)
