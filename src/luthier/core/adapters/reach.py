"""Reach: which sites a forward pass meets."""

from __future__ import annotations

from torch import nn

from luthier.core.adapters.container import Adapters
from luthier.core.adapters.state import State
from luthier.core.contracts.site import Sites
from luthier.core.sites.probe import run_once


def unreached(model: nn.Module, state: State, sites: Sites) -> list[str]:
    """Types of site that a pass never calls: an adapter there would be silent.

    One reached site of a type stands for all (a router sends few tokens to few experts). Attentions were found by
    running them, and are not judged; nor are models on the meta device and those that are no transformers model.
    What a pass has met once is not asked again.
    """
    from transformers import PreTrainedModel

    met = {site.type for site in sites if site.key in state.met}
    judged = [s for s in sites if s.kind != "cache" and s.type not in met]
    if not judged or not isinstance(model, PreTrainedModel) or next(model.parameters()).is_meta:
        return []
    state.current.reached = set()
    try:
        run_once(model)
        state.met |= state.current.reached
        for adapters, y, version in state.current.returned:
            assert isinstance(adapters, Adapters)
            adapters.written = y._version != version
        reached = {site.type for site in judged if site.key in state.current.reached}
    finally:
        state.current.reached, state.current.reading, state.current.returned = None, None, []
    return sorted({site.type for site in judged} - reached)
