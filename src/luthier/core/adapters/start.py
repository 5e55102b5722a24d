"""Initialisation at a site: the first parameters of a component, new or stored, and their expected shapes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from luthier.core.adapters.tuner import AdapterComponent, starts
from luthier.core.contracts.form import Form, Stats
from luthier.core.contracts.init import Init
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import base_tensor, compute_dtype

Start = Callable[[nn.Module, Site, AdapterComponent], dict[str, Tensor]]
"""Returns the first tensors of a site, new or stored."""


def parameters(module: nn.Module, site: Site, component: AdapterComponent, start: Start) -> dict[str, nn.Parameter]:
    """Returns the parameters of a component at a site: new ones, or those of the group that shares them."""
    form, group = component.form_at(site), component.group(site)
    first = component.tuners.get(group)
    if first is not None:
        shapes = {k: p.shape for k, p in first._parameters.items() if p is not None}
        sizes = [(each.d_in, each.d_out, each.experts) for each in (site, first.site)]
        counted = any(not p.is_floating_point() for p in first._parameters.values() if p is not None)
        # positions of one tensor are not those of another, and shapes that a site does not tell cannot be compared
        apart = (counted or form.gathers) and sizes[0] != sizes[1]
        if apart or expected_shapes(module, site, component) not in (None, shapes):
            raise LuthierError(
                f"share={form.share!r}: {site} ({site.d_in} -> {site.d_out}) cannot share parameters with "
                f"{first.site} ({first.site.d_in} -> {first.site.d_out}), or their ranks differ."
            )
        return {k: p for k, p in first._parameters.items() if p is not None}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    wide = torch.promote_types(compute_dtype(module), torch.float32)  # float32 masters on a bf16 base
    with torch.device(device), default_dtype(wide), torch.no_grad():
        tensors = start(module, site, component)
    return {
        key: nn.Parameter(tensor.to(wide) if tensor.is_floating_point() else tensor, component.trains(key))
        for key, tensor in tensors.items()
    }


def regroup(model: nn.Module, component: AdapterComponent) -> None:
    """Splits the groups of share="type" by shape, where layers of one type differ in size from block to block."""
    if component.form.share != "type":
        return
    any_rank = replace(component, ranks={}, tuners={}, shapes={})
    found: dict[str, list[dict[str, torch.Size] | None]] = {}
    for site in component.sites:
        shapes = expected_shapes(model.get_submodule(site.module), site, any_rank)
        seen = found.setdefault(component.form.group(site), [shapes])
        if shapes not in seen:
            seen.append(shapes)
        if shapes != seen[0]:
            component.groups[site.key] = f"{component.form.group(site)}[{site.d_in}x{site.d_out}]"


@contextmanager
def default_dtype(dtype: torch.dtype):
    """Sets torch's default dtype while the context lasts."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def expected_shapes(module: nn.Module, site: Site, component: AdapterComponent) -> dict[str, torch.Size] | None:
    """Returns the shapes of a component's parameters at a site; None where a site does not tell them."""
    form = component.form_at(site)
    if set(form.needs) - {"weight"} or form.gathers:
        return None
    weight = _shape(module, site) if form.needs else None
    key = form, replace(site, path="", layer=None), weight
    if key not in component.shapes:
        stats = {} if weight is None else {"weight": torch.empty(weight, device="meta")}
        with torch.device("meta"):
            found = initial(module, site, form, stats)
            found |= starts(form, found) if component.subtract_start else {}
        component.shapes[key] = {k: t.shape for k, t in found.items()}
    return component.shapes[key]


def _shape(module: nn.Module, site: Site) -> torch.Size:
    """The shape of the base's weight; a quantised linear layer need not be dequantised for it."""
    return torch.Size((site.d_out, site.d_in)) if site.kind == "affine" else base_tensor(module, site).shape


def initial(module: nn.Module, site: Site, form: Form, stats: Stats, init: Init | None = None) -> dict[str, Tensor]:
    """Initialises a site by the form itself or by `init`; once for each expert of a 3-D parameter."""
    given = dict(stats)
    asking = [form] if init is None else [form, init]
    if any("weight" in each.needs for each in asking) and "weight" not in given:
        given["weight"] = base_tensor(module, site)
    for each in asking:
        missing = [need for need in each.needs if need not in given]
        if missing:
            raise LuthierError(f"{each.name()} needs {', '.join(missing)} of {site}; measure it and pass stats=….")

    def one(given: Stats) -> dict[str, Tensor]:
        return form.init(site, given) | (init.factors(form, site, given) if init is not None else {})

    if not form.elementwise and site.maps != (site.experts or 1):
        raise LuthierError(
            f"{form.name()} acts on matrices, and {site} has more than three axes; choose others (where)."
        )
    count = form.maps(site)
    if count is None:
        return one(given)
    each = [one({k: v[i] for k, v in given.items()}) for i in range(count)]
    return {key: torch.stack([tensors[key] for tensors in each]) for key in each[0]}
