"""DARE: drop at random, rescale what is left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.core.contracts.combination import Combination
from luthier.core.numerics.delta import Delta
from luthier.methods.combinations._then import following


@dataclass(frozen=True)
class DARE(Combination):
    """δ = then(m_i ⊙ δ_i / (1 - p)), m_i ~ Bernoulli(1 - p)

    Every entry is dropped with probability p and the others are divided by 1 - p, so that the expectation stays;
    `then` combines what is left: task_arithmetic (DARE linear) or ties (DARE TIES, each at its defaults). The draw
    follows from the seed, the tensor's name and the input's place in the order, not from the order of tensors.
    (mergekit now rescales to the old L1 norm instead; this is the paper's rule.)
    """

    paper = "Yu et al. 2023 (ICML 2024), arXiv 2311.03099"
    commutes = False
    neutral: ClassVar = {"drop": 0.0}

    drop: float = 0.9
    """The share p of the entries that is dropped."""
    seed: int = 0
    """The seed of the random drop."""
    then: str = "task_arithmetic"
    """The combination of what is left, such as task_arithmetic or ties."""

    def check(self):
        self.within("drop", 0, 1 - 1e-6)
        following(self.then, self)

    def merge(self, deltas, weights, at):
        left = [self._dropped(d, f"{self.seed} {i} {at.site.path}") for i, d in enumerate(deltas)]
        return following(self.then, self).merge(left, weights, at)

    def _dropped(self, delta: Delta, label: str) -> Delta:
        if self.drop == 0 or delta.is_zero:
            return delta
        full = delta.dense()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(label.encode()).digest()[:7], "big"))
        keep = torch.rand(full.shape, generator=generator).to(full.device) >= self.drop
        return Delta.dense_of(full * keep / (1 - self.drop))
