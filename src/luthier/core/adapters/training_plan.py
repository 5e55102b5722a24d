"""The plan that an update is given: which tensors of which sites are trained, at which depth, in which step."""

from __future__ import annotations

from functools import partial

from torch import nn

from luthier.core.adapters.attach import check_name, state_of
from luthier.core.contracts.update import ParameterGroup, TrainingPlan, Update
from luthier.core.sites.fresh import fresh_modules
from luthier.core.sites.structure import base_tensor, block_lists, stack_owner


def training_plan(model: nn.Module, steps: int, *, name: str | None = None, seed: int = 0) -> TrainingPlan:
    """Returns the training plan of `steps` optimiser steps on the adapters of a model, or on the one named."""
    state = state_of(model)
    if name is not None:
        check_name(state, name)
    components, new = state.components, fresh_modules(model)
    groups: list[ParameterGroup] = []
    fresh: list[ParameterGroup] = []
    depth = max((len(blocks) for blocks in block_lists(model).values()), default=0)
    outside = _outside(model, depth)
    for index, component in enumerate(components):
        before = sum(other.name == component.name for other in components[:index])
        prefix = component.name if not before else f"{component.name}:{before}"
        if name not in (None, component.name):
            continue
        for group, tuner in component.tuners.items():
            site = tuner.origin
            level = outside[site.module] if site.layer is None else site.layer + 1
            params = {key: p for key, p in tuner.named_parameters() if component.trains(key)}
            module, owner = map(model.get_submodule, (site.module, stack_owner(model, site.module)))
            held = fresh if site.module in new else groups
            base = partial(base_tensor, module, site)
            kept = {key: p for key, p in tuner.named_parameters() if key not in params}
            held.append(ParameterGroup(f"{prefix}.{group}", site, tuner.form, level, params, base, module, owner, kept))
    return TrainingPlan(tuple(groups), depth, steps, seed, tuple(fresh))


def _outside(model: nn.Module, depth: int) -> dict[str, int]:
    """The level of modules outside the blocks: 0 ahead of the first stack, or of the stack that they are part of."""
    order = {path: position for position, (path, _) in enumerate(model.named_modules())}
    stacks = {path: stack_owner(model, path) for path in block_lists(model)}
    first = min((order[path] for path in stacks), default=0)

    def ahead(path: str, stack: str, owner: str) -> bool:
        return order[path] < order[stack] and (not owner or f"{path}.".startswith(f"{owner}."))

    return {
        path: 0 if order[path] < first or any(ahead(path, *each) for each in stacks.items()) else depth + 1
        for path in order
    }


def active_groups(update: Update, plan: TrainingPlan, step: int) -> list[ParameterGroup]:
    """Returns the groups that `step` trains: those that the update says, and modules new to the checkpoint."""
    return [*(update.active(plan, step) if plan.groups else ()), *plan.new_groups]
