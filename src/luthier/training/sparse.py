"""Whole weights of which few entries moved, as a sparse adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core.adapters.attach import detach, place, state_of
from luthier.core.adapters.slot import Part, Slot
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
    first, *others = (part for part in state_of(model).parts if part.name == name)
    new = fresh_modules(model)
    slots = [slot for slot in first.slots.values() if slot.origin.module not in new]
    found = {slot.origin.path: _moved(model, slot) for slot in slots}
    ranks = {site.path: len(found[site.path][0]) if site.path in found else 0 for site in first.sites}
    if not 0 < sum(ranks.values()) * WORTH < sum(p.numel() for slot in slots for p in slot.parameters()):
        return
    sparse = Part(name, Sparse(), first.where, Sites(s for s in first.sites if ranks[s.path]), ranks)
    heads = Sites(site for site in first.sites if site.module in new)
    kept = [(first, Part(name, first.form, " | ".join(f"params({s.path})" for s in heads), heads))] if heads else []
    kept += [(part, Part(name, part.form, part.where, part.sites, part.ranks, part.relative)) for part in others]
    whole = {id(again): part for part, again in kept}

    def start(module: Any, site: Site, part: Part) -> dict[str, Tensor]:
        if part is sparse:
            return dict(zip(("index", "values"), found[site.path], strict=True))
        slot = whole[id(part)].slots[part.group(site)]
        return {key: p.detach() for key, p in slot.named_parameters()}

    detach(model, name)
    place(model, [sparse, *(again for _, again in kept)], start, check=False)


@torch.no_grad()
def _moved(model: Any, slot: Slot) -> tuple[Tensor, Tensor]:
    """(positions, changes) of the entries that are not the base's."""
    (trained,) = slot.parameters()
    base = base_tensor(model.get_submodule(slot.origin.module), slot.origin)
    change = (trained - base.to(trained.dtype)).flatten()
    index = change.nonzero().flatten()
    return index.to(torch.int32 if len(change) < 2**31 else torch.int64), change[index]
