"""Fast paths: a form's `luthier/kernels/<name>.py` computes an adapted linear layer in one piece.

The kernel is `linear(form, p, x, weight, bias) -> y`, with x [..., d_in], a frozen dense weight [d_out, d_in], and the
parameters p in x's dtype. It gives what the form's own face and the layer give together, to rounding; that plain pair
is its oracle, and runs wherever the kernel cannot: under torch.compile (which fuses by itself), autocast, sharding,
mixed batches, packed weights, and beside another adapter on the same layer.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from luthier.core.form import Form, Params

if TYPE_CHECKING:
    from luthier.core.slot import Adapters, Slot


class Kernel(Protocol):
    """An adapted linear layer in one piece."""

    def __call__(self, form: Form, p: Params, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


_on = True


@contextmanager
def plain() -> Iterator[None]:
    """Every form runs as its equation says, while the context lasts."""
    global _on
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before


@functools.cache
def kernel_of(form: type[Form]) -> Kernel | None:
    """The kernel in the file that bears the form's name, or None."""
    name = f"luthier.kernels.{form.name()}"
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name).linear


def fast_linear(module: nn.Module, adapters: Adapters, x: Tensor) -> Tensor | None:
    """What a layer with one adapter gives, by a kernel; None where the plain path is to run."""
    if torch.compiler.is_compiling() or not _on or adapters.state.rows is not None:
        return None
    kernel, slot = adapters.kernels[0]
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or not _serves(module, slot, x, weight, bias):
        return None
    return kernel(slot.active(), slot.params(x.dtype), x, weight, bias)


def _serves(module: nn.Module, slot: Slot, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        type(module)._luthier_base is nn.Linear  # type: ignore[attr-defined]
        and slot.spot is None
        and weight.dtype == x.dtype
        and not (weight.requires_grad or (bias is not None and bias.requires_grad))
        and not torch.is_autocast_enabled(x.device.type)
        and type(weight) in (nn.Parameter, Tensor)  # neither sharded nor packed (torchao's has the layer's own dtype)
    )
