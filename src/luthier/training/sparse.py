"""Whole weights of which few entries moved, as a sparse adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core.adapters.attach import detach, place, state_of
from luthier.core.adapters.slot import Part, Slot
from luthier.core.contracts.site import Site, Sites
from luthier.core.sites.structure import base_tensor
from luthier.methods.forms.sparse import Sparse

WORTH = 2
"""A sparse entry takes as many bytes as two whole ones, for its position and its value."""


def sparsify(model: Any, name: str) -> None:
    """Puts in place of the whole weights of adapter `name` the entries in which they differ from the base.

    The first part of the adapter is meant; others, such as heads that are new to the model, stay as they are, and so
    does all where entries would not be smaller.
    """
    first, *others = (part for part in state_of(model).parts if part.name == name)
    found = {slot.origin.path: _moved(model, slot) for slot in first.slots.values()}
    ranks = {path: len(index) for path, (index, _) in found.items()}
    if not 0 < sum(ranks.values()) * WORTH < sum(p.numel() for slot in first.slots.values() for p in slot.parameters()):
        return
    sites = Sites(site for site in first.sites if ranks[site.path])
    new = Part(name, Sparse(), first.where, sites, ranks)
    again = [Part(name, part.form, part.where, part.sites, part.ranks, part.relative) for part in others]

    def start(module: Any, site: Site, part: Part) -> dict[str, Tensor]:
        if part is new:
            return dict(zip(("index", "values"), found[site.path], strict=True))
        slot = others[again.index(part)].slots[part.form.group(site)]
        return {key: p.detach() for key, p in slot.named_parameters()}

    detach(model, name)
    place(model, [new, *again], start, check=False)


@torch.no_grad()
def _moved(model: Any, slot: Slot) -> tuple[Tensor, Tensor]:
    """(positions, changes) of the entries that are not the base's."""
    (trained,) = slot.parameters()
    base = base_tensor(model.get_submodule(slot.origin.module), slot.origin)
    change = (trained - base.to(trained.dtype)).flatten()
    index = change.nonzero().flatten()
    return index.to(torch.int32 if len(change) < 2**31 else torch.int64), change[index]
