"""Gradient ascent that stays near the model before on the retained rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from luthier.core.contracts.unlearning import Unlearning


@dataclass(frozen=True)
class KL(Unlearning):
    """L = log p(y | x) over the rows to forget, + β KL(p_before || p) over the retained

    The divergence is meant over the places of the retained rows.
    """

    paper = "Maini et al. 2024 (TOFU, KL minimisation), arXiv 2401.06121"
    remembers = True

    beta: float = 1.0
    """The weight β of the divergence."""

    def check(self):
        self.within("beta", 0.0)

    def loss(self, forget, retain: Any):
        raised = -nn.functional.cross_entropy(forget.logits, forget.labels)
        now, then = retain.logits.log_softmax(-1), retain.before.log_softmax(-1)
        return raised + self.beta * nn.functional.kl_div(now, then, log_target=True, reduction="batchmean")
