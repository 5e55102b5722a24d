"""Lottery-ticket sparse fine-tuning: full fine-tuning shows which entries matter, and these train from the start."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.update import Course, Place, Update
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
    sparse = True

    density: float = 0.01
    """k over the number of trained entries."""
    search: float = 0.5
    """Share of the steps that full fine-tuning takes."""

    def check(self):
        self.within("density", 1e-9, 1.0)
        self.within("search", 0.0, 1.0)

    def check_form(self, form, sites):
        if not isinstance(form, Full):
            raise LuthierError(f"lt_sft chooses entries of weights, and {form.name()} adds factors; use full.")

    def turn(self, steps: int) -> int:
        """The step at which the chosen entries begin."""
        return min(max(1, round(self.search * steps)), steps - 1)

    def restarts(self, steps):
        return (self.turn(steps),)

    def weights(self, course: Course) -> list[Place]:
        """Places that hold weights of the base."""
        return [place for place in course.places if isinstance(place.form, Full)]

    def entries(self, course, step):
        if step != self.turn(course.steps):
            return None
        moved = {
            place.key(key): (p.detach() - place.base().to(p.dtype)).abs().flatten()
            for place in self.weights(course)
            for key, p in place.params.items()
        }
        sizes = [len(each) for each in moved.values()]
        top = torch.cat(list(moved.values())).topk(max(1, int(self.density * sum(sizes)))).indices.sort().values
        ends = torch.tensor([0, *sizes], device=top.device).cumsum(0)
        counts = torch.searchsorted(top, ends).diff().tolist()
        return {key: each - end for key, each, end in zip(moved, top.split(counts), ends, strict=False)}

    def values(self, course: Course, step: int):
        if step != self.turn(course.steps):
            return {}
        return {place.key(key): place.base() for place in self.weights(course) for key in place.params}
