"""Fast paths: a form's `luthier/kernels/<name>.py` computes an adapted linear layer in one piece.

Its `linear(form, p, x, weight, bias) -> y` takes x [..., d_in], a frozen dense weight [d_out, d_in] and the parameters
p, all in one dtype. It gives what the form's own face and the layer give together, to rounding; that plain pair is its
oracle, and runs wherever the kernel cannot: under torch.compile (which fuses by itself), autocast, sharding, packed
weights, and beside another adapter on the same layer.

Where no gradient is wanted, one decoded token costs less than finding out what to do with it. So a kernel may also
have `decoder(form, p, layer) -> run` and `mixed(pairs, rows, layer) -> run`, which settle all of that once: `run(x)` is
then the adapted layer, `layer(x)` the base's. The parameters come as they are stored (float32).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.core.form import Form, Params

if TYPE_CHECKING:
    from luthier.core.slot import Adapters, Slot


Run = Callable[[Tensor], Tensor]
"""A layer: x [..., d_in] to y [..., d_out]."""


class Kernel(Protocol):
    """What a file of `luthier.kernels` defines; the last two may be missing."""

    linear: Callable[[Form, Params, Tensor, Tensor, Tensor | None], Tensor]
    decoder: Callable[[Form, Params, Run], Run]
    mixed: Callable[[Sequence[tuple[Form, Params]], Sequence[int | None], Run], Run]


@dataclass(frozen=True)
class Step:
    """An adapted layer, ready to run as long as nothing about it changes."""

    weight: Tensor
    dtype: torch.dtype
    run: Run

    def __reduce__(self):
        return type(None), ()  # a copy of the layer has other parameters, and settles its own


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
    return importlib.import_module(name)  # type: ignore[return-value]


def ready(module: nn.Module, adapters: Adapters, x: Tensor) -> Run | None:
    """The step that was settled for this layer, if it still holds for x."""
    step: Step | None = adapters.step
    if (
        step is None
        or torch.is_grad_enabled()
        or not _on
        or step.dtype is not x.dtype
        or step.weight is not module._parameters["weight"]
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
    ):
        return None
    return step.run


def fast_linear(module: nn.Module, adapters: Adapters, x: Tensor) -> Tensor | None:
    """What an adapted layer gives, by a kernel; None where the plain path is to run."""
    slots = adapters.fast
    if torch.compiler.is_compiling() or not _on or not slots:
        return None
    kernel = kernel_of(type(slots[0].form))
    assert kernel is not None  # or the slots were not fast
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or not _serves(module, slots, x, weight, bias):
        return None
    rows = adapters.state.rows
    if not torch.is_grad_enabled() and (run := _settled(kernel, slots, rows, weight, bias)) is not None:
        adapters.step = Step(weight, x.dtype, run)
        return run(x)
    if rows is not None or len(slots) > 1:
        return None
    return kernel.linear(slots[0].active(), slots[0].params(x.dtype), x, weight, bias)


def _settled(
    kernel: Kernel, slots: Sequence[Slot], rows: Sequence[str | None] | None, weight: Tensor, bias: Tensor | None
) -> Run | None:
    """The step of a layer outside training, where its kernel has one."""

    def layer(x: Tensor) -> Tensor:
        return functional.linear(x, weight, bias)

    known = vars(kernel)
    if any(slot.active() is not slot.quiet for slot in slots) or not {"decoder", "mixed"} <= set(known):
        return None
    if rows is None:
        return kernel.decoder(slots[0].quiet, slots[0].own(), layer) if len(slots) == 1 else None
    places = {slot.name: index for index, slot in enumerate(slots)}
    if len(places) < len(slots):  # an adapter with two parts here
        return None
    return kernel.mixed([(s.quiet, s.own()) for s in slots], [places.get(row or "") for row in rows], layer)


def _serves(module: nn.Module, slots: Sequence[Slot], x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        type(module)._luthier_base is nn.Linear  # type: ignore[attr-defined]
        and all(slot.spot is None for slot in slots)
        and weight.dtype == x.dtype
        and not (weight.requires_grad or (bias is not None and bias.requires_grad))
        and not torch.is_autocast_enabled(x.device.type)
        and type(weight) in (nn.Parameter, Tensor)  # neither sharded nor packed (torchao's has the layer's own dtype)
    )
