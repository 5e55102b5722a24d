"""Finished adapters as experts: what each does to the layers of a model, as factors of one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from luthier.core.adapters.attach import adapter_names, detach, find_state, state_of
from luthier.core.adapters.lower import delta_of
from luthier.core.adapters.tuner import AdapterComponent, TunerLayer
from luthier.core.contracts.form import Stats
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.storage.folder import adapter_folder
from luthier.core.storage.store import load


@contextmanager
def borrowed(model: nn.Module, source: str) -> Iterator[list[AdapterComponent]]:
    """The parts of a saved adapter, on the model while the context lasts; refuses an adapter of another base."""
    folder, state = adapter_folder(source), find_state(model)
    taken = adapter_names(state) if state else []
    name = next(n for n in ("expert", *(f"expert{i}" for i in range(99))) if n not in taken)
    load(model, folder, name, check=False)
    try:
        with torch.no_grad():
            yield [component for component in state_of(model).components if component.name == name]
    finally:
        detach(model, name)


def stacked(model: nn.Module, sources: Sequence[str], sites: Sequence[Site], rank: int) -> dict[str, Stats]:
    """Stacks the adapters in `sources`: {path: {"A": [experts, rank, d_in], "B": [experts, d_out, rank]}}, scaled in B.

    An expert of a lower rank is filled up with zeros, and is zero at sites that it leaves alone. Raises `LuthierError`
    for adapters of another base, forms that are no change of low rank, and changes elsewhere than at `sites`.
    """
    found = [deltas(model, source) for source in sources]
    for source, held in zip(sources, found, strict=True):
        _check(source, held, sites, rank)
    return {site.path: _stack([held.get(site.path) for held in found], site, rank) for site in sites}


def deltas(model: nn.Module, source: str) -> dict[str, Delta]:
    """Returns what a saved adapter adds to each linear layer, by path, as factors; the model is left as it was."""
    with borrowed(model, source) as components:
        state = state_of(model)
        return {
            container.path: _low_rank(source, container.path, model.get_submodule(container.path), tuners)
            for container in state.containers
            if (tuners := container.named(components[0].name))
        }


def _low_rank(source: str, path: str, module: nn.Module, tuners: Sequence[TunerLayer]) -> Delta:
    why = f"{source}: {tuners[0].form.name()} at {path} cannot be an expert"
    if any(tuner.site.kind != "affine" for tuner in tuners):
        raise LuthierError(f"{why}: it acts on {tuners[0].site}, and experts are changes of linear layers.")
    try:
        found = delta_of(module, tuners)
    except LuthierError as error:
        raise LuthierError(f"{why}. {error}") from None
    if found.rank is None:
        raise LuthierError(f"{why}: its change has no factors of low rank. Fit a form that has, such as lora.")
    return found


def _check(source: str, held: Mapping[str, Delta], sites: Sequence[Site], rank: int) -> None:
    paths = {site.path for site in sites}
    elsewhere = [path for path in held if path not in paths]
    if elsewhere:
        raise LuthierError(
            f"{source} also changes {elsewhere[0]}, which is none of the {len(paths)} sites; widen where to hold all "
            "that the experts change."
        )
    largest = max(delta.rank or 0 for delta in held.values())
    if largest > rank:
        raise LuthierError(f"{source} has rank {largest}, more than the {rank} of each expert; set rank={largest}.")


def _stack(held: Sequence[Delta | None], site: Site, rank: int) -> dict[str, Tensor]:
    a, b = torch.zeros(len(held), rank, site.d_in), torch.zeros(len(held), site.d_out, rank)
    wide = next((d.A.dtype for d in held if d is not None and d.A is not None), a.dtype)
    a, b = a.to(wide), b.to(wide)
    for i, delta in enumerate(held):
        if delta is not None and delta.A is not None and delta.B is not None:
            a[i, : len(delta.A)], b[i, :, : len(delta.A)] = delta.A, delta.B
    return {"A": a, "B": b}


def parameters(
    model: nn.Module, source: str, form: str, sites: Sequence[Site], keys: Sequence[str]
) -> dict[str, Stats]:
    """Reads {path: {key: tensor}} of the tensors `keys` of a saved adapter of this form, at the same sites."""
    with borrowed(model, source) as components:
        found = [component for component in components if component.form.name() == form]
        if len(found) != 1:
            raise LuthierError(f"{source} is not an adapter of one {form}, whose parameters could be taken.")
        (component,) = found
        if {site.path for site in component.sites} != {site.path for site in sites}:
            raise LuthierError(
                f"{source} acts on {len(component.sites)} other sites (where={component.where!r}); take the same."
            )
        held = {site.path: component.tuners[component.group(site)].own() for site in sites}
        return {path: {key: tensors[key].detach().clone() for key in keys} for path, tensors in held.items()}
