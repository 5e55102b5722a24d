"""LISA: a few blocks at a time, drawn anew every few steps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.update import Update
from luthier.methods.updates._layers import check_layered


@dataclass(frozen=True)
class LISA(Update):
    """active(t) = outside the blocks ∪ γ blocks, drawn uniformly for every K steps

    Embeddings, final norm and head train in every step. The others' gradients are not computed, and the moments of
    a block go when the block does: memory holds γ blocks of them. (The authors' code switches gradients alone, and
    keeps the moments of every block it ever visited.) With two stacks, encoder and decoder, a draw takes the same
    blocks of both. Within a run `luthier.trainable` gives what the next step trains; what `luthier.train` counts, and
    what it leaves trainable, are all that take turns.
    """

    paper = "Pan et al. 2024 (NeurIPS), arXiv 2403.17919 (code: OptimalScale/LMFlow)"
    family = "selective"
    neutral: ClassVar = {"gamma": 10**6}

    gamma: int = 2
    """γ: blocks that train at a time (all, where there are fewer)."""
    interval: int = 20
    """K: steps between draws."""

    @property
    def changes(self):
        return True

    def check(self):
        self.within("gamma", 1)
        self.within("interval", 1)

    def check_form(self, form, sites):
        check_layered(self, form, sites)

    def active(self, plan, step):
        blocks = sorted({group.level for group in plan.groups} & set(range(1, plan.depth + 1)))
        draw = random.Random(f"lisa {plan.seed} {step // self.interval}")
        resting = set(blocks) - set(draw.sample(blocks, min(self.gamma, len(blocks))))
        return [group for group in plan.groups if group.level not in resting]
