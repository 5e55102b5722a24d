"""GreenTrainer: the tensors that lower the loss most for the operations that a step may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from luthier.core.contracts.costs import BackwardCosts
from luthier.core.contracts.update import TrainingPlan, Update
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import widened

PROBE = 2
"""Steps that a probe takes."""


@dataclass(frozen=True)
class GreenTrainer(Update):
    """max Σ_S I_k  with  t_fp + Σ_S t_dw + Σ t_dy ≤ ρ T,  I_k = -⟨g(w₁), w₁ - w₀⟩

    S are the tensors that train, T the operations of a step that trains all, t_fp those of its forward pass, t_dw
    those of a tensor's own gradient, and t_dy those of handing the gradient down from the loss to the deepest tensor of
    S. Below that one nothing goes backward, so a step may cost less than the frozen base's own backward pass. Of a form
    with factors, a place's tensors are taken together.

    Every epoch, or every `every` steps, two steps of the run probe: all trains, from w₀ to w₁, at the run's full rate
    (a warm-up begins at zero); the next batch gives g(w₁); then weights and moments are again those from before. The
    choice is exact: for each deepest tensor, the best set of the nearer ones for what is left. (The authors' code
    keeps the moments of its probe, takes both gradients on one batch, and rounds costs down to a thousandth of T.)
    What is not chosen gets no gradient and holds no moments. Costs are read off the graph of one batch.
    """

    paper = "Huang et al. 2024 (ICLR), arXiv 2309.13192 (code: pittisl/GreenTrainer)"
    family = "selective"
    neutral: ClassVar = {"rho": 1.0}

    rho: float = 0.5
    """ρ: the operations of a step over those of one that trains everything."""
    every: int | None = None
    """Steps between selections. Default: an epoch."""

    @property
    def changes(self):
        return self.rho < 1

    def check(self):
        self.above("rho", 0, 1)
        self.within("every", PROBE + 1)

    def check_plan(self, plan):
        if self.rho == 1 or plan.costs is None:
            return
        if plan.steps <= PROBE:
            raise LuthierError(
                f"green_trainer probes in {PROBE} steps before it selects, and the run has {plan.steps}; train for at "
                f"least {PROBE + 1}."
            )
        costs = plan.costs()
        least = costs.least
        if least > self.rho * costs.total:
            raise LuthierError(
                f"green_trainer.rho is {self.rho:g}, and a step that trains one tensor, the nearest to the loss, costs "
                f"{least / costs.total:.3f} of full training (its forward pass {costs.forward / costs.total:.3f}); "
                f"give rho at least {np.ceil(1000 * least / costs.total) / 1000:g}."
            )

    def interval(self, plan: TrainingPlan) -> int:
        """Returns the steps from one probe to the next."""
        return self.every or max(plan.epoch or plan.steps, PROBE + 1)

    def probing(self, plan: TrainingPlan, step: int) -> bool:
        """Returns whether `step` belongs to a probe; one that no step would follow is not made."""
        into = step % self.interval(plan)
        return self.rho < 1 and into < PROBE and step - into + PROBE < plan.steps

    def probes(self, plan, step):
        return self.probing(plan, step) and step % self.interval(plan) == 0

    def active(self, plan, step):
        if not plan.states or plan.costs is None or self.rho == 1 or self.probing(plan, step):
            return plan.groups
        known = {name: float(state["importance"]) for name, state in plan.states.items()}
        chosen = selected(plan.costs(), known, self.rho)
        return [group for group in plan.groups if group.name in chosen]

    def init(self, group):
        return {"importance": torch.zeros((), dtype=torch.float64)} if self.rho < 1 else {}

    def probed(self, grads, moved, state, group):
        gains = [-torch.sum(widened(grads[key]) * widened(moved[key])).cpu().double() for key in grads]
        state["importance"] = torch.stack(gains).sum() if gains else torch.zeros((), dtype=torch.float64)


def selected(costs: BackwardCosts, importance: dict[str, float], rho: float) -> frozenset[str]:
    """Returns the names of the groups that a step at ρ trains."""
    offered = tuple(name for name in costs.names if name in importance)
    places = [costs.names.index(name) for name in offered]
    left = tuple(int(rho * costs.total) - costs.forward - costs.passed[place] for place in places)
    own = tuple(costs.own[place] for place in places)
    return frozenset(offered[i] for i in choose(tuple(importance[name] for name in offered), own, left))


@lru_cache(maxsize=8)
def choose(values: Sequence[float], own: Sequence[int], left: Sequence[int]) -> tuple[int, ...]:
    """Returns the indices of the best set: of the largest sum of `values`, where the costs `own` of its members are at
    most what is `left` when its last member is the deepest.

    Members come from the loss to the input, and `left` falls. All sets of the first k that no other one beats in both
    cost and value are kept (Nemhauser and Ullmann 1969), so the answer is exact. They are few where many tensors have
    one cost, as the layers of a transformer do.
    """
    cost, value = np.zeros(1, dtype=np.int64), np.zeros(1)
    stages: list[tuple[np.ndarray, np.ndarray]] = []
    best, found = -np.inf, (0, -1)
    for k, (v, c, room) in enumerate(zip(values, own, left, strict=True)):
        at = int(np.searchsorted(cost, room - c, side="right")) - 1
        if at >= 0 and value[at] + v > best:
            best, found = value[at] + v, (k, at)
        cost, value, origin = _extended(cost, value, v, c, room)
        stages.append(origin)
    return _members(stages, *found)


def _extended(cost: np.ndarray, value: np.ndarray, v: float, c: int, room: int):
    """The unbeaten sets with one more tensor on offer, cheapest first, each with (its index before, whether taken)."""
    old = np.arange(len(cost))
    if v <= 0 or not len(cost):
        return cost, value, (old, np.zeros(len(cost), dtype=bool))
    costs, values = np.concatenate([cost, cost + c]), np.concatenate([value, value + v])
    order = np.lexsort((-values, costs))
    order = order[costs[order] <= room]
    best = np.maximum.accumulate(values[order])
    order = order[np.concatenate([[True], values[order][1:] > best[:-1]])] if len(order) else order
    return costs[order], values[order], (order % len(cost), order >= len(cost))


def _members(stages: Sequence[tuple[np.ndarray, np.ndarray]], last: int, at: int) -> tuple[int, ...]:
    if at < 0:
        return ()
    members = [last]
    for k in range(last - 1, -1, -1):
        before, taken = stages[k]
        if taken[at]:
            members.append(k)
        at = int(before[at])
    return tuple(sorted(members))
