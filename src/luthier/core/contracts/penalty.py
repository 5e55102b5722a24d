"""The contract of a penalty: what a change of the trained tensors is charged for, and what is kept of earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from luthier.core.contracts.component import Component

Tensors = Mapping[str, Tensor]
"""Tensors of the adapter by name, as `luthier.trainable` gives them."""
PenaltyState = dict[str, dict[str, Tensor]]
"""What a penalty keeps: by kind (`importance`, `anchor`, …), tensors of the adapter's names and shapes."""


@dataclass(frozen=True)
class PenaltyStep:
    """One optimiser step, as a penalty sees it afterwards."""

    number: int
    """The steps of the task that are done, this one included."""
    gradient: Tensors
    """The gradient of the loss without the penalty, before clipping, at `before`."""
    before: Tensors
    after: Tensors


@dataclass(frozen=True)
class Penalty(Component):
    """A charge on changes of the trained tensors: L + weight · Σ_i Ω_i (θ_i - θ*_i)².

    begin(params, kept) -> running        what it keeps from the first step of a task on; it goes into checkpoints
    follow(running, step)                 changes `running` after each optimiser step
    finish(kept, running, params, fisher) -> kept   what is known after a task, and charged for in the next
    charge(params, state) -> scalar       the penalty, of `kept` and `running` together
    gradient(params, state) -> tensors    its gradient, which is added to the loss's own before clipping

    `importance` Ω and `anchor` θ* are the kinds that `charge` and `gradient` read; without an anchor nothing is
    charged, without importances each entry counts 1. All states hold detached tensors of the dtype of the parameters.
    """

    remembers: ClassVar[bool] = True
    """Whether it goes by earlier tasks, so that a run on one set of rows alone is refused."""
    reads_rows: ClassVar[bool] = False
    """Whether `finish` is given the Fisher information of the task's single rows."""
    neutral: ClassVar[Mapping[str, float]] = {"weight": 0.0}
    """Settings at which training goes as without it, bit for bit."""

    weight: float = 1.0
    """The weight of the penalty."""

    def check(self) -> None:
        self.within("weight", 0.0)

    def begin(self, params: Tensors, kept: PenaltyState) -> PenaltyState:
        """Returns the running state at the start of a task."""
        return {}

    def follow(self, running: PenaltyState, step: PenaltyStep) -> None:
        """Changes `running` in place after a step."""

    def finish(self, kept: PenaltyState, running: PenaltyState, params: Tensors, fisher: Tensors) -> PenaltyState:
        """Returns what is kept after a task; `fisher` is empty unless `reads_rows`."""
        return kept

    def charge(self, params: Tensors, state: PenaltyState) -> Tensor:
        """Returns weight · Σ_i Ω_i (θ_i - θ*_i)², a scalar."""
        anchors, counts = state.get("anchor", {}), state.get("importance", {})
        terms = [(counts.get(key, 1.0) * (params[key].detach() - at).square()).sum() for key, at in anchors.items()]
        return self.weight * torch.stack(terms).sum() if terms else torch.zeros(())

    def gradient(self, params: Tensors, state: PenaltyState) -> dict[str, Tensor]:
        """Returns 2 weight · Ω (θ - θ*) by name; empty where nothing is charged."""
        if not self.weight:
            return {}
        counts = state.get("importance", {})
        found = {}
        for key, anchor in state.get("anchor", {}).items():
            found[key] = (params[key].detach() - anchor) * counts.get(key, 1.0) * (2 * self.weight)
        return found


def zeros(params: Tensors) -> dict[str, Tensor]:
    """Returns zeros of the tensors' shapes."""
    return {key: torch.zeros_like(p, requires_grad=False) for key, p in params.items()}


def copies(params: Tensors) -> dict[str, Tensor]:
    """Returns detached copies of the tensors."""
    return {key: p.detach().clone() for key, p in params.items()}
