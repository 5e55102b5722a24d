"""Task score: tasks that the model could do before fine-tuning it still does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.core.contracts.gate import Gate


@dataclass(frozen=True)
class TaskScore(Gate):
    """worsening = mean over rows of s(θ₀) - s(θ'), s the score of the answer that a model writes, from 0 to 1

    A probe is a row with its reference; the answer is greedy, or the likeliest class, and is scored as `luthier
    evaluate` scores it.
    """

    paper = "Biderman et al. 2024, LoRA learns less and forgets less, arXiv 2405.09673"
    worse: ClassVar[str] = "lower"
    unit: ClassVar[str] = "score"
    covers: ClassVar[tuple[str, ...]] = ("closed",)

    tolerance: float = 0.05
    """Largest fall of the mean score that may be released."""
    max_new_tokens: int = 128
    """Longest answer."""

    def check(self):
        self.within("tolerance", 0, 1)
        self.within("max_new_tokens", 1)

    def look(self, subject):
        subject.examples(self.data or "")

    def measure(self, subject):
        return subject.compared(
            lambda model: torch.tensor(subject.score(model, self.data or "", self.max_new_tokens)).double()
        )
