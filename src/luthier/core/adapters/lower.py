"""Lowering: the weight and bias that a linear layer and its adapters are equal to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from luthier.core.adapters.pass_ import Pass
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.router import names_of
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.sites.structure import weight_of


def under(tuners: Sequence[TunerLayer], name: str, tensor: Tensor) -> Tensor:
    """Returns the parameter `name` of a module with the edits of those tuner layers that act on it directly."""
    for tuner in acting_on(tuners, name):
        tensor = tuner.weight(tensor)
    return tensor


def acting_on(tuners: Sequence[TunerLayer], name: str) -> list[TunerLayer]:
    """Returns those tuner layers that act on the parameter `name` directly."""
    return [tuner for tuner in tuners if tuner.site.kind == "param" and tuner.site.path.rpartition(".")[2] == name]


def affine_map(module: nn.Module, tuners: Sequence[TunerLayer]) -> tuple[Tensor, Tensor | None]:
    """Returns (W', b') of an adapted linear layer by probing with the identity: W' = f(I) - f(0), b' = f(0).

    Computed in float32 at least, whatever the base is stored in. b' is None where it is zero and the layer has
    no bias.
    """
    weight, offset, through = _probe(module, tuners)
    d_in = weight.shape[1]
    zero = torch.zeros(1, d_in, dtype=weight.dtype, device=weight.device)
    none = torch.zeros_like(offset)
    eye = torch.eye(d_in, dtype=weight.dtype, device=weight.device)
    merged = (through(eye, none) - through(zero, none)).mT
    new_bias = through(zero, offset)[0]
    return merged, new_bias if module._parameters.get("bias") is not None or bool(new_bias.any()) else None


def merged_weight(module: nn.Module, tuners: Sequence[TunerLayer]) -> Tensor:
    """Returns W' of `affine_map` in the cheapest way that the forms allow."""
    if len(tuners) == 1 and tuners[0].site.kind == "affine":
        weight = weight_of(module)
        factors = tuners[0].factors(weight.dtype, weight)
        if factors is not None:
            return torch.addmm(weight, *factors)
    return affine_map(module, tuners)[0]


def _probe(
    module: nn.Module, tuners: Sequence[TunerLayer]
) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """(weight, bias, the layer as a function of x and the bias) under `tuners`, in float32 at least."""
    weight, bias = weight_of(module, _stored(module, "weight", tuners)), _stored(module, "bias", tuners)
    wide = torch.promote_types(weight.dtype, torch.float32)
    weight = weight.to(wide)
    offset = torch.zeros(len(weight), dtype=wide, device=weight.device) if bias is None else bias.to(wide)
    on_layer = [tuner for tuner in tuners if tuner.site.kind != "param"]
    for tuner in (s for s in on_layer if s.form.edit_kind == "weight"):
        weight = tuner.weight(weight)

    def through(x: Tensor, b: Tensor) -> Tensor:
        entering = x
        for tuner in (s for s in on_layer if s.form.edit_kind == "pre"):
            entering = tuner.pre(entering)
        y = entering @ weight.mT + b
        for tuner in (s for s in on_layer if s.form.edit_kind == "post"):
            y = tuner.post(_NOBODY, x, y)
        return y

    return weight, offset, through


def _stored(module: nn.Module, name: str, tuners: Sequence[TunerLayer]) -> Tensor | None:
    """The parameter with the edits of those tuner layers that act on it directly."""
    found = module._parameters.get(name)
    return None if found is None else under(tuners, name, found)


_NOBODY = Pass()
"""No call, no rows: an affine form does not look."""


def bias_change(module: nn.Module, tuners: Sequence[TunerLayer]) -> Tensor:
    """Returns b' - b [d_out] of a linear layer under affine edits; a layer without bias has b = 0."""
    weight, offset, through = _probe(module, tuners)
    return through(weight.new_zeros(1, weight.shape[1]), offset)[0] - offset


def delta_of(module: nn.Module, tuners: Sequence[TunerLayer]) -> Delta:
    """Returns the change of a linear layer's weight [d_out, d_in] under affine edits; factors where forms give them.

    Raises `LuthierError` for forms that no weight can express, and where the bias changes as well.
    """
    refuse_unmergeable(tuners)
    _refuse_biased(module, tuners)
    weight = weight_of(module)
    if len(tuners) == 1:
        tuner = tuners[0]
        wide = torch.promote_types(weight.dtype, torch.float32)
        factors = tuner.factors(wide, weight.to(wide))
        if factors is not None:
            return Delta.low_rank(*factors)
    merged, _ = affine_map(module, tuners)
    return Delta.dense_of(merged - weight.to(merged.dtype))


def refuse_unmergeable(tuners: Sequence[TunerLayer]) -> None:
    """Raises for a form that no weight can express."""
    for tuner in tuners:
        form, site = tuner.form, tuner.site
        why = None
        if site.kind in ("stream", "input", "cache"):
            why = f"it acts on {site}, which is not a weight"
        elif form.positions != "all":
            why = f"it acts at positions {form.positions}, and a weight acts at all"
        elif len(names := names_of(form)) > 1:
            why = f"its weight differs from task to task ({', '.join(names)})"
        elif not form.linear:
            why = "it is not linear in its input"
        if why:
            raise LuthierError(
                f"{form.name()} cannot be merged: {why}. Keep it attached (it runs unmerged), or fit a form "
                "on linear layers, such as lora or wegeft."
            )


def _refuse_biased(module: nn.Module, tuners: Sequence[TunerLayer]) -> None:
    moved, bias = bias_change(module, tuners), module._parameters.get("bias")
    if bool(moved.abs().max() > (0.0 if bias is None else 1e-6 * bias.abs().max())):
        raise LuthierError(
            f"{tuners[0].form.name()} changes the bias at {tuners[0].site}, and a change of the weight alone would "
            "lose that; merge it into the base instead."
        )
