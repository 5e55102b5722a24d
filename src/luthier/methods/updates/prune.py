"""Pruning in the middle of a run, and tuning what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from luthier.core.contracts.update import Exchange, ParameterGroup, TrainingPlan, Update
from luthier.core.errors import LuthierError
from luthier.methods.forms.dsee import DSEE


@dataclass(frozen=True)
class Prune(Update):
    """behind `start` of the steps K = 0 at the `ratio` smallest |B A + S|, or |W|, of each weight; then tuning goes on

    The learning rate's schedule begins anew at that step, and moments stay. W is the base's weight. The pruned entries
    are zero from then on, whatever B A and S become (see `dsee`). The authors train twice, with a run for each phase.
    """

    paper = "Chen et al. 2023 (ACL), arXiv 2111.00160 (code: VITA-Group/DSEE)"
    family = "selective"

    ratio: float = 0.2
    """Share of each weight that is pruned."""
    by: Literal["change", "weight"] = "change"
    """Whose smallest entries go: those of the change B A + S, or of W."""
    start: float = 0.5
    """Share of the steps before pruning."""

    def check(self):
        self.above("ratio", 0, 1)
        self.within("start", 0, 1)
        if self.ratio == 1:
            raise LuthierError("prune.ratio is 1 and would leave no weight; expected a number above 0 and below 1.")

    def check_form(self, form, sites):
        if not isinstance(form, DSEE) or not form.prunable:
            raise LuthierError(f"prune sets the mask of dsee with prunable, and {form.name()} has none here; use both.")
        if form.share is not None:
            raise LuthierError(f"prune goes weight by weight; leave share={form.share!r} out.")

    def check_beside(self, form, sites):
        """Other forms of the adapter are trained as they are."""

    def pruned_before(self, steps: int) -> int:
        """Returns the step before which the weights are pruned."""
        return min(max(1, round(self.start * steps)), max(1, steps - 1))

    def restarts(self, steps):
        return (self.pruned_before(steps),)

    def exchanges(self, plan, step):
        if step != self.pruned_before(plan.steps):
            return {}
        found = (group for group in plan.groups if isinstance(group.form, DSEE))
        return {group.name: Exchange({"keep": self.mask(plan, group)}, {}) for group in found}

    def mask(self, plan: TrainingPlan, group: ParameterGroup) -> torch.Tensor:
        """Returns K of a group as it is now: the smallest entries are False."""
        form, w = group.form, group.base()
        assert isinstance(form, DSEE)
        p = {**group.frozen, **{key: t.detach() for key, t in group.params.items()}}
        size = (form.change(p, w.shape) if self.by == "change" else w).abs().flatten()
        gone = size.topk(int(self.ratio * len(size)), largest=False).indices
        return torch.ones_like(size, dtype=torch.bool).index_fill_(0, gone, False).view(w.shape)
