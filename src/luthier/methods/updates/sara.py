"""SaRA: the weights that are next to zero train, kept low in rank."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.contracts.update import ParameterGroup, TrainingPlan, Update
from luthier.core.errors import LuthierError
from luthier.methods.forms.full import Full


@dataclass(frozen=True)
class SaRA(Update):
    """min L(W) + λ ‖W ⊙ M‖₊  over W ⊙ M,  M = [|W₀| < θ];  behind `remask` of the steps M ← M ⊙ [|W| < θ]

    ‖·‖₊ is the nuclear norm, and its gradient (U Vᵀ) ⊙ M with W ⊙ M = U Σ Vᵀ, over the directions with σ > 0. As in the
    authors' code it is taken, in each step, of one matrix drawn from those with more than `narrowest` rows and columns,
    and is not clipped. What has grown to θ by the second phase stays where it is; weights of at least θ keep their
    bits. Tensors of any shape take part, a convolution's too, whose matrix is [out, in · kernel] for the norm (the
    authors take no convolution). Further forms and new heads train whole.
    """

    paper = "Hu et al. 2025 (ICLR), arXiv 2409.06633 (code: sjtuplayer/SaRA)"
    family = "selective"
    sparse = True

    threshold: float = 2e-3
    """θ: weights below it, without their sign, train."""
    penalty: float = 5e-4
    """λ of the nuclear norm."""
    remask: float = 0.5
    """Share of the steps after which the weights that have grown to θ are left (1: never)."""
    narrowest: int = 64
    """Matrices with more rows and columns than this have a nuclear norm."""

    def check(self):
        self.above("threshold", 0)
        self.within("penalty", 0)
        self.above("remask", 0, 1)
        self.within("narrowest", 1)

    def check_form(self, form, sites):
        if not isinstance(form, Full):
            raise LuthierError(f"sara chooses among the weights themselves, and {form.name()} adds to them; use full.")

    def check_beside(self, form, sites):
        """Other forms of the adapter are trained as they are."""

    def check_plan(self, plan):
        sizes = [group.base().abs() for group in self.weights(plan)]
        nonzero = [float(w[w > 0].min()) for w in sizes if w.any()]
        least, most = min(nonzero, default=0.0), max(float(w.max()) for w in sizes)
        if least >= self.threshold:
            raise LuthierError(
                f"sara.threshold is {self.threshold:g} and selects nothing but zeros: the smallest other weight "
                f"is {least:.3g}; give more."
            )
        if most < self.threshold:
            raise LuthierError(
                f"sara.threshold is {self.threshold:g} and selects all weights, the largest of which is {most:.3g}; "
                "give less, or train without sara."
            )

    def weights(self, plan: TrainingPlan) -> list[ParameterGroup]:
        """Returns the groups that hold weights of the base."""
        return [group for group in plan.groups if isinstance(group.form, Full)]

    def named(self, plan: TrainingPlan) -> Iterator[tuple[str, Tensor]]:
        """Yields the weights by name."""
        return ((group.key(key), p.detach()) for group in self.weights(plan) for key, p in group.params.items())

    def entries(self, plan, step):
        if step == 0:
            return {key: (w.flatten().abs() < self.threshold).nonzero().flatten() for key, w in self.named(plan)}
        if step != round(self.remask * plan.steps):
            return None
        held = dict(self.named(plan))
        return {key: index[held[key].take(index).abs() < self.threshold] for key, index in plan.chosen.items()}

    def penalties(self, plan, step):
        wide = [(key, w) for key, w in self.named(plan) if w.dim() > 1 and min(matrix(w).shape) > self.narrowest]
        if not self.penalty or not wide:
            return {}
        key, w = random.Random(f"sara {plan.seed} {step}").choice(wide)
        index = plan.chosen.get(key)
        if index is None or not len(index):
            return {}
        mask = torch.zeros(w.numel(), dtype=w.dtype, device=w.device).index_fill_(0, index, 1).view_as(w)
        return {key: self.penalty * nuclear_gradient(matrix(w * mask)).view_as(w) * mask}


def matrix(w: Tensor) -> Tensor:
    """Returns a weight as a matrix, [out, all else]."""
    return w.reshape(w.shape[0], -1)


def nuclear_gradient(w: Tensor) -> Tensor:
    """Returns the gradient of the nuclear norm of w [m, n]: U Vᵀ over the directions that are not rounding errors."""
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    kept = s > s[0] * max(w.shape) * torch.finfo(s.dtype).eps
    return (u * kept) @ vt
