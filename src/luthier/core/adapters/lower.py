"""What the forms on a layer make of its tensors: the weight and bias that stand for the layer with its adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from luthier.core.adapters.pass_ import Pass
from luthier.core.adapters.slot import Slot
from luthier.core.contracts.router import names_of
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.sites.structure import weight_of


def under(slots: Sequence[Slot], name: str, tensor: Tensor) -> Tensor:
    """The parameter `name` of a module as those of the slots make it that act on the parameter itself."""
    for slot in acting_on(slots, name):
        tensor = slot.weight(tensor)
    return tensor


def acting_on(slots: Sequence[Slot], name: str) -> list[Slot]:
    """Those of the slots that act on the parameter `name` itself."""
    return [slot for slot in slots if slot.site.kind == "param" and slot.site.path.rpartition(".")[2] == name]


def affine_map(module: nn.Module, slots: Sequence[Slot]) -> tuple[Tensor, Tensor | None]:
    """(W', b') of a linear layer under `slots`, found by probing with the identity: W' = f(I) - f(0), b' = f(0).

    Computed in float32 at least, whatever the base is stored in. b' is None where it is zero and the layer has
    no bias.
    """
    weight, offset, through = _probe(module, slots)
    d_in = weight.shape[1]
    zero = torch.zeros(1, d_in, dtype=weight.dtype, device=weight.device)
    none = torch.zeros_like(offset)
    eye = torch.eye(d_in, dtype=weight.dtype, device=weight.device)
    merged = (through(eye, none) - through(zero, none)).mT
    new_bias = through(zero, offset)[0]
    return merged, new_bias if module._parameters.get("bias") is not None or bool(new_bias.any()) else None


def merged_weight(module: nn.Module, slots: Sequence[Slot]) -> Tensor:
    """W' of `affine_map`, in the cheapest way that the forms know: read in every pass, by the factors of one."""
    if len(slots) == 1 and slots[0].site.kind == "affine":
        weight = weight_of(module)
        factors = slots[0].factors(weight.dtype, weight)
        if factors is not None:
            return torch.addmm(weight, *factors)
    return affine_map(module, slots)[0]


def _probe(module: nn.Module, slots: Sequence[Slot]) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """(weight, bias, the layer as a function of x and the bias) under `slots`, in float32 at least."""
    weight, bias = weight_of(module, _stored(module, "weight", slots)), _stored(module, "bias", slots)
    wide = torch.promote_types(weight.dtype, torch.float32)
    weight = weight.to(wide)
    offset = torch.zeros(len(weight), dtype=wide, device=weight.device) if bias is None else bias.to(wide)
    on_layer = [slot for slot in slots if slot.site.kind != "param"]
    for slot in (s for s in on_layer if s.form.face == "weight"):
        weight = slot.weight(weight)

    def through(x: Tensor, b: Tensor) -> Tensor:
        entering = x
        for slot in (s for s in on_layer if s.form.face == "pre"):
            entering = slot.pre(_NOBODY, entering)
        y = entering @ weight.mT + b
        for slot in (s for s in on_layer if s.form.face == "post"):
            y = slot.post(_NOBODY, x, y)
        return y

    return weight, offset, through


def _stored(module: nn.Module, name: str, slots: Sequence[Slot]) -> Tensor | None:
    """The parameter as the slots on the parameter itself make it."""
    found = module._parameters.get(name)
    return None if found is None else under(slots, name, found)


_NOBODY = Pass()
"""No call, no rows: an affine form does not look."""


def bias_change(module: nn.Module, slots: Sequence[Slot]) -> Tensor:
    """b' - b [d_out] of a linear layer under affine slots; a layer without bias has b = 0."""
    weight, offset, through = _probe(module, slots)
    return through(weight.new_zeros(1, weight.shape[1]), offset)[0] - offset


def delta_of(module: nn.Module, slots: Sequence[Slot]) -> Delta:
    """The change of a linear layer's weight [d_out, d_in] under affine slots; exact factors where forms give them.

    Raises `LuthierError` for forms that no weight can express, and where the bias changes as well.
    """
    refuse_unmergeable(slots)
    _refuse_biased(module, slots)
    weight = weight_of(module)
    if len(slots) == 1:
        slot = slots[0]
        wide = torch.promote_types(weight.dtype, torch.float32)
        factors = slot.factors(wide, weight.to(wide))
        if factors is not None:
            return Delta.low_rank(*factors)
    merged, _ = affine_map(module, slots)
    return Delta.dense_of(merged - weight.to(merged.dtype))


def refuse_unmergeable(slots: Sequence[Slot]) -> None:
    """Raises for a form that no weight can express."""
    for slot in slots:
        form, site = slot.form, slot.site
        why = None
        if site.kind in ("stream", "input", "cache"):
            why = f"it acts on {site}, which is no weight"
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


def _refuse_biased(module: nn.Module, slots: Sequence[Slot]) -> None:
    moved, bias = bias_change(module, slots), module._parameters.get("bias")
    if bool(moved.abs().max() > (0.0 if bias is None else 1e-6 * bias.abs().max())):
        raise LuthierError(
            f"{slots[0].form.name()} changes the bias at {slots[0].site}, and a change of the weight alone would lose "
            "that; merge it into the base instead."
        )
