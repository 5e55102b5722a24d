"""Control of attached adapters: which are enabled, on which rows they act, and what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import torch
from torch import Tensor, nn

from luthier.core.adapters.attach import adapter_names, check_name, find_state, state_of
from luthier.core.adapters.call import Prompt
from luthier.core.adapters.container import AdapterContainer
from luthier.core.adapters.pass_ import Pass, Passes
from luthier.core.adapters.prefix import refresh_prefixes
from luthier.core.adapters.state import State
from luthier.core.adapters.swap import prompting
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.router import Route, Told, adapter_and_task, listed, names_of, place
from luthier.core.errors import LuthierError


def enable(model: nn.Module, name: str | Sequence[str] | None = None) -> nn.Module:
    """Enables adapters, those named or all; others stay as they are."""
    _unmerged(model)
    return switch(model, name, True)


def disable(model: nn.Module, name: str | Sequence[str] | None = None) -> nn.Module:
    """Disables adapters, those named or all; they stay attached and keep their parameters."""
    _unmerged(model)
    return switch(model, name, False)


def _unmerged(model: nn.Module) -> State:
    """The state of a model; raises while adapters are merged, as they cannot be switched then."""
    state = state_of(model)
    if state.merged:
        raise LuthierError("adapters are merged into the weights; unmerge before choosing which of them act.")
    return state


def switch(model: nn.Module, name: str | Sequence[str] | None, on: bool) -> nn.Module:
    """Enables or disables adapters, merged ones too."""
    state = state_of(model)
    state.passes.alone()
    known = adapter_names(state)
    wanted = known if name is None else [name] if isinstance(name, str) else list(name)
    for each in wanted:
        check_name(state, each)
    for container in state.containers:
        if found := [tuner for each in wanted for tuner in container.named(each) if tuner.enabled is not on]:
            container.switch(found, on)
    refresh_prefixes(model, state)
    return model


def use(model: nn.Module, name: str | Sequence[str]) -> nn.Module:
    """Enables the named adapters and disables all others; its time does not grow with how many are attached."""
    state = _unmerged(model)
    state.passes.alone()
    wanted = [name] if isinstance(name, str) else list(name)
    for each in wanted:
        check_name(state, each)
    for container in state.containers:
        if off := [tuner for tuner in container.acting.values() if tuner.name not in wanted]:
            container.switch(off, False)
        if on := [tuner for each in wanted for tuner in container.named(each) if not tuner.enabled]:
            container.switch(on, True)
    refresh_prefixes(model, state)
    return model


@contextmanager
def disabled(model: nn.Module, name: str | Sequence[str] | None = None):
    """Disables adapters, those named or all, while the context lasts."""
    with state_of(model).passes.held("disabled"):
        before = acting(model)
        disable(model, name)
        try:
            yield model
        finally:
            set_acting(model, before)


Acting = dict[AdapterContainer, tuple[int, list[TunerLayer]]]
"""By container: how many tuner layers it has been given so far, and those that are enabled."""


def acting(model: nn.Module) -> Acting:
    """Returns the tuner layers that are enabled now."""
    return {container: (container.given, list(container.acting.values())) for container in state_of(model).containers}


def set_acting(model: nn.Module, before: Acting) -> None:
    """Enables again what was enabled before and is still attached; of the others, only newer ones stay enabled.

    Those that were merged meanwhile stay disabled, as their effect is in the weights.
    """
    state = find_state(model)
    if state is None:  # all were detached
        return
    folded = set(state.folded)
    for container in (container for container in state.containers if container in before):
        given, tuners = before[container]
        container.switch([tuner for tuner in container.acting.values() if tuner.order < given], False)
        container.switch([tuner for tuner in tuners if container.holds(tuner) and tuner not in folded], True)
    refresh_prefixes(model, state)


@contextmanager
def rows(model: nn.Module, names: Sequence[str | None]):
    """Assigns an adapter to each row of a mixed batch while the context lasts: row i uses `names[i]`, None the base.

    An adapter that routes by the task of a row is named with it, `adapter:task`.
    """
    state = _unmerged(model)
    told, whose = row_tasks(state, names), adapters_in(names)
    with state.passes.held("rows") as current:
        before, outer = acting(model), (current.rows, current.row_tasks, current.frozen)
        use(model, list(dict.fromkeys(name for name in whose if name is not None)))
        current.rows, current.row_tasks, current.frozen = stamped(whose), told, False
        try:
            yield model
        finally:
            current.rows, current.row_tasks, current.frozen = outer
            set_acting(model, before)


def adapters_in(names: Sequence[str | None]) -> list[str | None]:
    """Returns the adapter of each row, without its task."""
    return [None if name is None else adapter_and_task(name)[0] for name in names]


def tasks_by_adapter(state: State, name: str) -> tuple[str, ...]:
    """Returns the tasks that rows of an adapter have to be named with; empty where it does not go by several."""
    found = (names_of(component.form) for component in state.components if component.name == name)
    return next((each for each in found if len(each) > 1), ())


def row_tasks(state: State, names: Sequence[str | None]) -> dict[str, Tensor]:
    """Returns the task of each row by adapter, [rows], where rows name any; raises for unknown adapters and tasks."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name is None:
            continue
        adapter, task = adapter_and_task(name)
        check_name(state, adapter)
        known = tasks_by_adapter(state, adapter)
        if task is None and not known:
            continue
        if task is None:
            raise LuthierError(f"adapter {adapter!r} goes by the task of a row; name it, as {adapter}:{known[0]}.")
        if not known:
            raise LuthierError(f"{name!r} names a task, and adapter {adapter!r} does not go by any; leave it out.")
        found.setdefault(adapter, [0] * len(names))[row] = place(known, task)
    return {adapter: torch.tensor(indices) for adapter, indices in found.items()}


def stamped(names: Sequence[str | None]) -> tuple[str | None, ...]:
    """Returns the names as a new tuple object: decode plans compare rows by identity."""
    return tuple(iter(names))


class RowAssignment:
    """The per-row adapter assignment of a model over many passes, between which rows come and go.

    As `rows`, but it stays until another one is set, and so do the caches of layers for mixed batches. Code that
    changes the parameters of an adapter has to `release` the rows before: checking the parameters of all adapters for
    every token would take as long as using them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: list[str | None] | None = None
        self._set: tuple[Passes, Pass] | None = None
        """Where the rows stand: with the thread that runs the model."""

    def set(self, names: Sequence[str | None]) -> None:
        """Assigns the adapter names[i] to row i, None to use the base; free where nothing changes."""
        if self._names == list(names):
            return
        if (state := find_state(self._model)) is not None:
            whose = adapters_in(names)
            use(self._model, sorted({name for name in whose if name is not None}))
            # rows of one kind take the forms' own path, without a choice for each row
            current = state.current
            current.rows = stamped(whose) if len(set(whose)) > 1 else None
            current.row_tasks = row_tasks(state, names)
            current.frozen = state.passes.arranged = True
            self._set = state.passes, current
        self._names = list(names)

    def release(self) -> None:
        """Removes the assignment, so that adapters may be attached and detached."""
        self._names = None
        if self._set is not None:
            passes, current = self._set
            current.rows, current.row_tasks, current.frozen, passes.arranged = None, {}, False, False
            self._set = None


@contextmanager
def prompt(model: nn.Module, lengths: int | Sequence[int] | Tensor):
    """Sets where prompts end, behind column `lengths` (one number, or one per row), for calls without labels."""
    end = lengths if isinstance(lengths, int | Tensor) else torch.tensor(lengths)
    with prompted(model, Prompt(end)):
        yield model


@contextmanager
def prompted(model: nn.Module, prompt: Prompt):
    """Sets what is known of the prompts of a batch, as `prompt` sets where they end."""
    with state_of(model).passes.held("prompt") as current, prompting(current, prompt):
        yield model


@overload
def trainable(model: nn.Module) -> dict[str, nn.Parameter]: ...
@overload
def trainable(model: nn.Module, *, count: bool) -> int: ...
def trainable(model: nn.Module, *, count: bool = False) -> dict[str, nn.Parameter] | int:
    """Returns the trainable tensors by name, `<adapter>.<group>.<parameter>`; with `count`, their total size.

    Those with `requires_grad`: between the steps of an update that lets some rest, what the next step trains.
    """
    found = {key: p for key, p in tensors(model).items() if p.requires_grad}
    return sum(p.numel() for p in found.values()) if count else found


def tensors(model: nn.Module, name: str | None = None) -> dict[str, nn.Parameter]:
    """Returns every tensor of the adapters (or of one) by name, frozen ones included."""
    found: dict[str, nn.Parameter] = {}
    components = state_of(model).components
    for index, component in enumerate(components):
        before = sum(other.name == component.name for other in components[:index])
        prefix = component.name if not before else f"{component.name}:{before}"
        if name in (None, component.name):
            for group, tuner in component.tuners.items():
                found |= {f"{prefix}.{group}.{k}": p for k, p in tuner._parameters.items() if p is not None}
    return found


def describe(model: nn.Module) -> list[dict]:
    """Describes what is attached: one row per component and type of site, with counts of sites and parameters."""
    rows_: list[dict] = []
    for component in state_of(model).components:
        groups: dict[tuple, dict] = {}
        for site in component.sites:
            row = groups.setdefault(
                (site.type, site.kind, site.d_in, site.d_out),
                {"adapter": component.name, "form": component.form.name(), "type": site.type, "kind": site.kind,
                 "d_in": site.d_in, "d_out": site.d_out, "sites": 0, "ranks": [], "parameters": 0},
            )  # fmt: skip
            row["sites"] += 1
            row["ranks"] += [component.ranks[site.path]] if component.ranks else []
            tuner = component.tuners[component.group(site)]
            if tuner.site.key == site.key:
                row["parameters"] += sum(p.numel() for p in tuner.parameters() if p.requires_grad)
        rows_ += groups.values()
    return rows_


@contextmanager
def tasks(model: nn.Module, told: Told):
    """Sets the tasks of the rows of every call while the context lasts: one name for all, or one per row."""
    state = state_of(model)
    names = [names_of(component.form) for component in state.components if names_of(component.form)]
    if names and not isinstance(told, Tensor):
        for each in listed(told):
            place(names[0], each)
    with state.passes.held("tasks") as current:
        before, current.tasks = current.tasks, told
        try:
            yield model
        finally:
            current.tasks = before


@contextmanager
def routed(model: nn.Module, told: str | Sequence[str] | None) -> Iterator[None]:
    """Sets the tasks of the rows of every call, where any are given."""
    if told is None:
        yield
        return
    with tasks(model, told):
        yield


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Route]]:
    """Records the routing decisions of every pass while the context lasts, in the order of the sites.

    What an inner context records, the outer one gets as well.
    """
    with state_of(model).passes.held("watched") as current:
        before, current.routes = current.routes, []
        try:
            yield current.routes
        finally:
            if before is not None:
                before += current.routes
            current.routes = before
