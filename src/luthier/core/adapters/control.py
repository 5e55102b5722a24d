"""Which adapters act, on which rows, and what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import torch
from torch import Tensor, nn

from luthier.core.adapters.attach import adapter_names, check_name, find_state, state_of
from luthier.core.adapters.call import Prompt
from luthier.core.adapters.container import Adapters
from luthier.core.adapters.prefix import refresh_prefixes
from luthier.core.adapters.slot import Slot
from luthier.core.adapters.state import State
from luthier.core.adapters.swap import prompting
from luthier.core.contracts.router import Route, Told, _listed, names_of, place
from luthier.core.errors import LuthierError


def enable(model: nn.Module, name: str | Sequence[str] | None = None) -> nn.Module:
    """Lets adapters act: those named, or all. Others stay as they are."""
    _unmerged(model)
    return switch(model, name, True)


def disable(model: nn.Module, name: str | Sequence[str] | None = None) -> nn.Module:
    """Silences adapters, those named or all; they stay attached and keep their parameters."""
    _unmerged(model)
    return switch(model, name, False)


def _unmerged(model: nn.Module) -> State:
    """The state of a model; raises while adapters are in its weights, where no switch reaches them."""
    state = state_of(model)
    if state.merged:
        raise LuthierError("adapters are merged into the weights; unmerge before choosing which of them act.")
    return state


def switch(model: nn.Module, name: str | Sequence[str] | None, on: bool) -> nn.Module:
    """Lets adapters act or silences them, merged ones too."""
    state = state_of(model)
    known = adapter_names(state)
    wanted = known if name is None else [name] if isinstance(name, str) else list(name)
    for each in wanted:
        check_name(state, each)
    for home in state.homes:
        if found := [slot for each in wanted for slot in home.named(each) if slot.enabled is not on]:
            home.switch(found, on)
    refresh_prefixes(model, state)
    return model


def use(model: nn.Module, name: str | Sequence[str]) -> nn.Module:
    """Lets the named adapters act, and no others. Its time does not grow with how many are attached."""
    state = _unmerged(model)
    wanted = [name] if isinstance(name, str) else list(name)
    for each in wanted:
        check_name(state, each)
    for home in state.homes:
        if off := [slot for slot in home.acting.values() if slot.name not in wanted]:
            home.switch(off, False)
        if on := [slot for each in wanted for slot in home.named(each) if not slot.enabled]:
            home.switch(on, True)
    refresh_prefixes(model, state)
    return model


@contextmanager
def disabled(model: nn.Module, name: str | Sequence[str] | None = None):
    """The base as it was, while the context lasts."""
    before = acting(model)
    disable(model, name)
    try:
        yield model
    finally:
        set_acting(model, before)


Acting = dict[Adapters, tuple[int, list[Slot]]]
"""By module: how many slots it has been given so far, and those that act."""


def acting(model: nn.Module) -> Acting:
    """The slots that act now."""
    return {home: (home.given, list(home.acting.values())) for home in state_of(model).homes}


def set_acting(model: nn.Module, before: Acting) -> None:
    """Lets those act that acted before, as far as they are still there, and of the others only newer ones.

    Those that were merged meanwhile stay silent, as their effect is in the weights.
    """
    state = find_state(model)
    if state is None:  # all were detached
        return
    folded = set(state.folded)
    for home in (home for home in state.homes if home in before):
        given, slots = before[home]
        home.switch([slot for slot in home.acting.values() if slot.order < given], False)
        home.switch([slot for slot in slots if home.holds(slot) and slot not in folded], True)
    refresh_prefixes(model, state)


@contextmanager
def rows(model: nn.Module, names: Sequence[str | None]):
    """A mixed batch: row i uses the adapter `names[i]`, None the base, while the context lasts."""
    state = _unmerged(model)
    for name in names:
        if name is not None:
            check_name(state, name)
    before, outer = acting(model), (state.current.rows, state.current.frozen)
    use(model, list(dict.fromkeys(name for name in names if name is not None)))
    state.current.rows, state.current.frozen = stamped(names), False
    try:
        yield model
    finally:
        state.current.rows, state.current.frozen = outer
        set_acting(model, before)


def stamped(names: Sequence[str | None]) -> tuple[str | None, ...]:
    """The names as an object of its own, also of a tuple: settled steps go by which object the rows are."""
    return tuple(iter(names))


class Arrangement:
    """Which adapter each row of a model uses, over many passes: rows come and go between two of them.

    As `rows`, but it stands until another one is set, and what layers keep for a mixed batch is kept along with it. Who
    changes what an adapter holds has to `release` the rows before: to look at the parameters of all adapters again for
    every token takes as long as to use them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: list[str | None] | None = None

    def set(self, names: Sequence[str | None]) -> None:
        """Row i uses the adapter names[i], None the base. Costs nothing where nothing changes."""
        if self._names == list(names):
            return
        if (state := find_state(self._model)) is not None:
            use(self._model, sorted({name for name in names if name is not None}))
            # rows of one kind take the forms' own path, without a choice for each row
            state.current.rows = stamped(names) if len(set(names)) > 1 else None
            state.current.frozen = True
        self._names = list(names)

    def release(self) -> None:
        """No row is arranged: adapters may come and go."""
        self._names = None
        if (state := find_state(self._model)) is not None:
            state.current.rows, state.current.frozen = None, False


@contextmanager
def prompt(model: nn.Module, lengths: int | Sequence[int] | Tensor):
    """Prompts end behind column `lengths` (one number, or one a row), for passes that carry no labels."""
    end = lengths if isinstance(lengths, int | Tensor) else torch.tensor(lengths)
    with prompting(state_of(model).current, Prompt(end)):
        yield model


@overload
def trainable(model: nn.Module) -> dict[str, nn.Parameter]: ...
@overload
def trainable(model: nn.Module, *, count: bool) -> int: ...
def trainable(model: nn.Module, *, count: bool = False) -> dict[str, nn.Parameter] | int:
    """The trained tensors by name, `<adapter>.<group>.<parameter>`; shared ones once. With `count`, their size.

    Those with `requires_grad`: between the steps of an update that lets some rest, what the next step trains.
    """
    found = {key: p for key, p in tensors(model).items() if p.requires_grad}
    return sum(p.numel() for p in found.values()) if count else found


def tensors(model: nn.Module, name: str | None = None) -> dict[str, nn.Parameter]:
    """Every tensor of the adapters (or of one), frozen ones included, by name."""
    found: dict[str, nn.Parameter] = {}
    parts = state_of(model).parts
    for index, part in enumerate(parts):
        before = sum(other.name == part.name for other in parts[:index])
        prefix = part.name if not before else f"{part.name}:{before}"
        if name in (None, part.name):
            for group, slot in part.slots.items():
                found |= {f"{prefix}.{group}.{k}": p for k, p in slot._parameters.items() if p is not None}
    return found


def describe(model: nn.Module) -> list[dict]:
    """What is attached: one row a part and type of site, with counts of sites and parameters."""
    rows_: list[dict] = []
    for part in state_of(model).parts:
        groups: dict[tuple, dict] = {}
        for site in part.sites:
            row = groups.setdefault(
                (site.type, site.kind, site.d_in, site.d_out),
                {"adapter": part.name, "form": part.form.name(), "type": site.type, "kind": site.kind,
                 "d_in": site.d_in, "d_out": site.d_out, "sites": 0, "ranks": [], "parameters": 0},
            )  # fmt: skip
            row["sites"] += 1
            row["ranks"] += [part.ranks[site.path]] if part.ranks else []
            slot = part.slots[part.group(site)]
            if slot.site.key == site.key:
                row["parameters"] += sum(p.numel() for p in slot.parameters() if p.requires_grad)
        rows_ += groups.values()
    return rows_


@contextmanager
def tasks(model: nn.Module, told: Told):
    """The rows of every call are of these tasks while the context lasts: one name for all, or one for each row."""
    state = state_of(model)
    names = [names_of(part.form) for part in state.parts if names_of(part.form)]
    if names and not isinstance(told, Tensor):
        for each in _listed(told):
            place(names[0], each)
    before, state.current.tasks = state.current.tasks, told
    try:
        yield model
    finally:
        state.current.tasks = before


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Route]]:
    """The decisions of every pass while the context lasts, in the order of the sites that were met."""
    state = state_of(model)
    before, state.current.routes = state.current.routes, []
    try:
        yield state.current.routes
    finally:
        state.current.routes = before
