"""Saving full weights of which few entries changed as a sparse adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core.adapters.attach import detach, place, state_of
from luthier.core.adapters.tuner import AdapterComponent, TunerLayer
from luthier.core.contracts.site import Site, Sites
from luthier.core.sites.fresh import fresh_modules
from luthier.core.sites.structure import base_tensor
from luthier.methods.forms.sparse import Sparse

WORTH = 2
"""A sparse entry takes as many bytes as two whole ones, for its position and its value."""


def sparsify(model: Any, name: str) -> None:
    """Puts in place of the whole weights of adapter `name` the entries in which they differ from the base.

    The first part of the adapter is meant; others stay as they are, and so does all where entries would not be
    smaller. Heads that are new to the checkpoint stay whole: another base would hold other numbers there to add to.
    """
    first, *others = (component for component in state_of(model).components if component.name == name)
    new = fresh_modules(model)
    tuners = [tuner for tuner in first.tuners.values() if tuner.origin.module not in new]
    found = {tuner.origin.path: _moved(model, tuner) for tuner in tuners}
    ranks = {site.path: len(found[site.path][0]) if site.path in found else 0 for site in first.sites}
    if not 0 < sum(ranks.values()) * WORTH < sum(p.numel() for tuner in tuners for p in tuner.parameters()):
        return
    sparse = AdapterComponent(name, Sparse(), first.where, Sites(s for s in first.sites if ranks[s.path]), ranks)
    heads = Sites(site for site in first.sites if site.module in new)
    kept = (
        [(first, AdapterComponent(name, first.form, " | ".join(f"params({s.path})" for s in heads), heads))]
        if heads
        else []
    )
    kept += [
        (
            component,
            AdapterComponent(
                name, component.form, component.where, component.sites, component.ranks, component.subtract_start
            ),
        )
        for component in others
    ]
    whole = {id(again): component for component, again in kept}

    def start(module: Any, site: Site, component: AdapterComponent) -> dict[str, Tensor]:
        if component is sparse:
            return dict(zip(("index", "values"), found[site.path], strict=True))
        tuner = whole[id(component)].tuners[component.group(site)]
        return {key: p.detach() for key, p in tuner.named_parameters()}

    detach(model, name)
    place(model, [sparse, *(again for _, again in kept)], start, check=False)


@torch.no_grad()
def _moved(model: Any, tuner: TunerLayer) -> tuple[Tensor, Tensor]:
    """(positions, changes) of the entries that are not the base's."""
    (trained,) = tuner.parameters()
    base = base_tensor(model.get_submodule(tuner.origin.module), tuner.origin)
    change = (trained - base.to(trained.dtype)).flatten()
    index = change.nonzero().flatten()
    return index.to(torch.int32 if len(change) < 2**31 else torch.int64), change[index]
