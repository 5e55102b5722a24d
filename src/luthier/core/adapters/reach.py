"""Reachability: which sites a forward pass calls."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

from torch import nn

from luthier.core.adapters.container import AdapterContainer
from luthier.core.adapters.state import State
from luthier.core.contracts.site import Sites
from luthier.core.errors import LuthierError
from luthier.core.sites.inputs import NotKnown
from luthier.core.sites.probe import run_bare, run_once


class CannotRun(LuthierError):
    """Raised when a model that ran before does not run with an adapter attached."""

    def __init__(self, model: nn.Module, error: Exception) -> None:
        self.reason = f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]
        super().__init__(f"with this adapter attached, {type(model).__name__} cannot run ({self.reason}).")


def check_reached(model: nn.Module, state: State, sites: Sites) -> None:
    """Raises for sites that a forward pass never meets; warns where no input of the model is known."""
    try:
        missed = unreached(model, state, sites)
    except NotKnown as error:
        text = "it was not checked whether a forward pass reaches every site of the adapter (check=False skips it)."
        warnings.warn(f"{error} So {text}", stacklevel=4)
        return
    _refuse_bypassed(missed, sites)


def _refuse_bypassed(missed: list[str], sites: Sites) -> None:
    """A layer that the model computes without is an error; a parameter among others is worth a warning."""
    if not missed:
        return
    text = f"{', '.join(missed)}: a forward pass never meets these, so an adapter there would do nothing."
    if all(site.kind == "param" for site in sites) and len(missed) < len({site.type for site in sites}):
        warnings.warn(text, stacklevel=3)
    else:
        raise LuthierError(f"{text} Choose other layers, or check=False if a later pass reaches them.")


def unreached(model: nn.Module, state: State, sites: Sites) -> list[str]:
    """Returns the types of site that a forward pass never calls, where an adapter would have no effect.

    One reached site of a type stands for all (a router sends few tokens to few experts). Attentions were found by
    running them, and are not judged; nor are models on the meta device and those that are no transformers model.
    What a pass has met once is not asked again.

    Raises `CannotRun` where the adapters break the pass, and `NotKnown` where no pass is known.
    """
    from transformers import PreTrainedModel

    met = {site.type for site in sites if site.key in state.met}
    judged = [s for s in sites if s.kind != "cache" and s.type not in met]
    if not judged or not isinstance(model, PreTrainedModel) or next(model.parameters()).is_meta:
        return []
    state.current.reached = set()
    try:
        _run_adapted(model, state)
        state.met |= state.current.reached
        for adapters, y, version in state.current.returned:
            assert isinstance(adapters, AdapterContainer)
            adapters.modified_in_place = y._version != version
        reached = {site.type for site in judged if site.key in state.current.reached}
    finally:
        state.current.reached, state.current.shared_input, state.current.returned = None, None, []
    return sorted({site.type for site in judged} - reached)


def _run_adapted(model: nn.Module, state: State) -> None:
    try:
        run_once(model)
    except Exception as error:
        with _silenced(state):
            run_bare(model)  # where this raises too, the adapters are not to blame
        raise CannotRun(model, error) from error


@contextmanager
def _silenced(state: State):
    before = [(container, list(container.acting.values())) for container in state.containers]
    for container, tuners in before:
        container.switch(tuners, False)
    try:
        yield
    finally:
        for container, tuners in before:
            container.switch(tuners, True)
