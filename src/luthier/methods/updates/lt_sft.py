"""Lottery-ticket sparse fine-tuning: full fine-tuning shows which entries matter, and these train from the start."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.update import ParameterGroup, TrainingPlan, Update
from luthier.core.errors import LuthierError
from luthier.methods.forms.full import Full


@dataclass(frozen=True)
class LTSFT(Update):
    """θ = θ₀ + φ, where φ trains at the k entries of largest |θ₁ - θ₀|

    θ₁ is where full fine-tuning leads in the first `search` of the steps. Then all is reset to θ₀, and the chosen
    entries, k of all tensors together, train with fresh moments and a schedule of their own. The adapter holds φ.
    What θ does not hold is not reset and trains whole: a head that is new, and further forms of the adapter.
    The authors give each phase its own number of steps; one search is made, as in their default.
    """

    paper = "Ansell et al. 2022 (ACL), arXiv 2110.07560 (code: cambridgeltl/composable-sft)"
    family = "selective"
    sparse = True

    density: float = 0.01
    """The share of the trainable entries that is kept, k over their number."""
    search: float = 0.5
    """Share of the steps that full fine-tuning takes."""

    def check(self):
        self.within("density", 1e-9, 1.0)
        self.within("search", 0.0, 1.0)

    def check_form(self, form, sites):
        if not isinstance(form, Full):
            raise LuthierError(f"lt_sft chooses entries of weights, and {form.name()} adds factors; use full.")

    def search_steps(self, steps: int) -> int:
        """Returns the step at which the sparse phase begins."""
        return min(max(1, round(self.search * steps)), steps - 1)

    def restarts(self, steps):
        return (self.search_steps(steps),)

    def weights(self, plan: TrainingPlan) -> list[ParameterGroup]:
        """Places that hold weights of the base."""
        return [group for group in plan.groups if isinstance(group.form, Full)]

    def entries(self, plan, step):
        if step != self.search_steps(plan.steps):
            return None
        moved = {
            group.key(key): (p.detach() - group.base().to(p.dtype)).abs().flatten()
            for group in self.weights(plan)
            for key, p in group.params.items()
        }
        sizes = [len(each) for each in moved.values()]
        top = torch.cat(list(moved.values())).topk(max(1, int(self.density * sum(sizes)))).indices.sort().values
        ends = torch.tensor([0, *sizes], device=top.device).cumsum(0)
        counts = torch.searchsorted(top, ends).diff().tolist()
        return {key: each - end for key, each, end in zip(moved, top.split(counts), ends, strict=False)}

    def values(self, plan: TrainingPlan, step: int):
        if step != self.search_steps(plan.steps):
            return {}
        return {group.key(key): group.base() for group in self.weights(plan) for key in group.params}
