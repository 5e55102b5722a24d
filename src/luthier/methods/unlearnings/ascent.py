"""Gradient ascent: the loss of the rows to forget is raised."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from luthier.core.contracts.unlearning import Unlearning


@dataclass(frozen=True)
class Ascent(Unlearning):
    """L = log p(y | x) over the rows to forget, + β (- log p(y | x)) over the retained

    Nothing bounds it from below, so it is stopped by its steps.
    """

    paper = "Jang et al. 2023, arXiv 2210.01504; with retained rows (gradient difference) Liu et al. 2022"

    beta: float = 0.0
    """The weight β of the loss of the retained rows."""

    def check(self):
        self.within("beta", 0.0)

    def loss(self, forget, retain):
        raised = -nn.functional.cross_entropy(forget.logits, forget.labels)
        return raised + self.beta * nn.functional.cross_entropy(retain.logits, retain.labels)
