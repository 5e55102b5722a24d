"""The tensors of a saved adapter: the header of their file is checked against the base before any of them is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from luthier.core.adapters.start import expected_shapes, initial, regroup
from luthier.core.adapters.tuner import AdapterComponent
from luthier.core.checks import shown
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.files import own_file, sha256
from luthier.core.guard import guarded
from luthier.core.sites.structure import base_tensor
from luthier.core.storage.format import SPEC

WEIGHTS = "adapter.safetensors"
FLOATS, INTEGERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "I16", "I8", "U8")
"""What safetensors calls the dtypes that an adapter may hold."""
WIDEST = 8
"""Bytes of the widest number."""
HEADER = 100 * 2**20
"""Bytes of the longest header that safetensors reads."""

Header = Mapping[str, tuple[str, torch.Size]]
"""The (dtype, shape) of each tensor."""


def opened(folder: Path, spec: Mapping[str, Any], most: int | None = None) -> Any:
    """Returns the open file of tensors, of at most `most` bytes, whose checksum is the spec's; none is read yet."""
    path = own_file(folder, WEIGHTS)
    size = path.stat().st_size
    if most is not None and size > most:
        raise LuthierError(f"{path} is damaged: it has {size:,} bytes, and its adapter takes at most {most:,}.")
    with guarded(f"{path} cannot be read"):
        if sha256(path) != spec["sha256"]:
            raise LuthierError(f"{path} is damaged: its SHA-256 is not the one in {SPEC}. Fetch or save it again.")
        return safetensors.safe_open(path, framework="pt")


def header(file: Any) -> Header:
    """Dtype and shape of every tensor, of which none is read."""
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    return {key: (each.get_dtype(), torch.Size(each.get_shape())) for key, each in slices.items()}


def read(
    folder: Path,
    spec: Mapping[str, Any],
    model: nn.Module,
    components: Sequence[AdapterComponent],
    stored: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """The tensors by group and name, for these parts on this model: of the expected shapes, finite, none more or less.

    `stored` gives the file's names where they are not the model's own. What the parts take is worked out first, so
    that no more is ever allocated than the file holds and they ask for.
    """
    for component in components:
        regroup(model, component)
    firsts = _firsts(components)
    shapes = {group: _shapes(folder, model, component, site) for group, (component, site) in firsts.items()}
    file = opened(folder, spec, _most(shapes))
    found: dict[str, dict[str, tuple[str, torch.Size]]] = {group: {} for group in firsts}
    own_of = {_renamed(group, stored or {}): group for group in firsts}
    with guarded(f"the header of {folder / WEIGHTS} cannot be read"):
        entries = header(file)
    for key, entry in entries.items():
        group, _, name = key.rpartition(".")
        group = own_of.get(group, "")
        if group not in found:
            raise LuthierError(f"{folder / WEIGHTS} holds tensors that the spec does not know: {shown(key)}.")
        found[group][name] = entry
    for group, own in found.items():
        check_shapes(folder, f"{group}.", {name: shape for name, (_, shape) in own.items()}, shapes[group])
        _check_formats(folder, group, own, model, *firsts[group])
    held = {
        group: {name: _tensor(folder, file, f"{_renamed(group, stored or {})}.{name}") for name in own}
        for group, own in found.items()
    }
    for group, own in held.items():
        _check_positions(folder, group, own, firsts[group][1])
    return held


def _renamed(group: str, stored: Mapping[str, str]) -> str:
    """The group under the names that the file has."""
    index, _, path = group.partition(".")
    return f"{index}.{stored.get(path, path)}"


def group_of(index: int, component: AdapterComponent, site: Site) -> str:
    """Returns the group of tensors of a site, for the part of that number."""
    return f"{index}.{component.group(site)}"


def _firsts(components: Sequence[AdapterComponent]) -> dict[str, tuple[AdapterComponent, Site]]:
    """The part and the first site of every group of tensors."""
    found: dict[str, tuple[AdapterComponent, Site]] = {}
    for index, component in enumerate(components):
        for site in component.sites:
            found.setdefault(group_of(index, component, site), (component, site))
    return found


def _shapes(folder: Path, model: nn.Module, component: AdapterComponent, site: Site) -> dict[str, torch.Size] | None:
    try:
        return expected_shapes(model.get_submodule(site.module), site, component)
    except (RuntimeError, OverflowError) as error:  # sizes that no tensor can have
        reason = str(error).split("\n", 1)[0]
        raise LuthierError(
            f"{folder / SPEC}: no {component.form.name()} with these settings fits {site} ({reason})."
        ) from error


def _most(shapes: Mapping[str, Mapping[str, torch.Size] | None]) -> int | None:
    """Bytes that a file of these tensors takes at most; None where not all shapes are known."""
    known = [each for each in shapes.values() if each is not None]
    sizes = (math.prod(shape) for each in known for shape in each.values())
    return WIDEST * sum(sizes) + HEADER if len(known) == len(shapes) else None


def check_shapes(folder: Path, prefix: str, found: Mapping[str, torch.Size], expected) -> None:
    """Raises unless the tensors found at a site are there and have the expected shapes."""
    if not found:
        raise LuthierError(f"{folder / WEIGHTS} lacks the tensors of {prefix.rstrip('.')}.")
    if expected is None:
        return
    for key in sorted({*expected, *found}):
        if found.get(key) != expected.get(key):
            have = tuple(found[key]) if key in found else "missing"
            want = tuple(expected[key]) if key in expected else "no such tensor"
            raise LuthierError(f"{folder / WEIGHTS}: {prefix}{ascii(key)[1:-1][:60]} is {have}; expected {want}.")


def _check_formats(
    folder: Path, group: str, own: Mapping[str, Any], model: nn.Module, component: AdapterComponent, site: Site
) -> None:
    """Raises unless what is trained is of floating point, and what is frozen as the form has it."""
    untrained = not all(map(component.trains, own))
    fresh = _fresh(model.get_submodule(site.module), component, site) if untrained else {}
    for name, (form, _) in own.items():
        floating = name not in fresh or fresh[name].is_floating_point()
        if form not in (FLOATS if floating else INTEGERS):
            wanted = "floating-point" if floating else "whole"
            raise LuthierError(f"{folder / WEIGHTS}: {group}.{name} holds {form}; expected {wanted} numbers.")


def _fresh(module: nn.Module, component: AdapterComponent, site: Site) -> dict[str, Tensor]:
    """What the form starts from at a site, without values; nothing where only a statistic could tell."""
    form = component.form_at(site)
    if set(form.needs) - {"weight"}:
        return {}
    with torch.device("meta"):
        stats = {need: torch.empty(base_tensor(module, site).shape) for need in form.needs}
        return initial(module, site, form, stats)


def _tensor(folder: Path, file: Any, key: str) -> Tensor:
    with guarded(f"{folder / WEIGHTS}: {key} cannot be read"):
        tensor = file.get_tensor(key).clone()  # the file's memory is aligned to 8 bytes, where some round otherwise
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise LuthierError(
            f"{folder / WEIGHTS}: {key} holds NaN or infinity; this adapter was saved from a failed run."
        )
    return tensor


def _check_positions(folder: Path, group: str, own: Mapping[str, Tensor], site: Site) -> None:
    """Raises for whole numbers, which are positions in what a form acts on, that no tensor there has."""
    for name, tensor in own.items():
        end = site.entries
        if not tensor.is_floating_point() and tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < end:
            raise LuthierError(f"{folder / WEIGHTS}: {group}.{name} holds positions outside of 0 to {end - 1}.")
