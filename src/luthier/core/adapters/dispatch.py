"""Fast paths: a form's `luthier/kernels/<name>.py` computes an adapted linear layer in one piece.

Its `linear(layer, x) -> y` takes x [..., d_in] and a `Layer`: a form with its parameters as they are stored, and a
frozen dense weight [d_out, d_in] in the dtype of x. It gives what the form's own face and the layer give together, to
rounding; that plain pair is its oracle, and runs wherever the kernel cannot: under torch.compile (which fuses by
itself), autocast, sharding, packed weights, and beside another adapter on the same layer. With
`linears(layers, x) -> ys`, layers of one part that read the same x run as one (`luthier.core.adapters.siblings`).

Where no gradient is wanted, one decoded token costs less than finding out what to do with it. So a kernel may also
have `decoder(form, p, layer) -> run` and `mixed(pairs, layer) -> arrange`, which settle all of that once: `run(x)` is
then the adapted layer, `layer(x)` the base's. `arrange(rows) -> run` is the layer for rows that use one of the pairs
each: what the pairs make together is kept while rows come and go. The parameters come as they are stored (float32).
What depends on them alone may be computed then and kept (`KEEPS`): a step is settled anew when torch's counters say
that a tensor changed, when one was replaced or moved, and behind every pass with gradients, since some optimisers write
past the counters.
What is written through `.data` (averages of weights, say) has no counter. So on a CPU what is kept of a single adapter
also goes by the values of its parameters; on a GPU, where a look at them would stop the queue, nothing is kept of it.

A kernel with `difference(form, p, start) -> p'`, f(p') = f(p) - f(start) and exactly 0 at the start, also serves forms
that act as the difference to their start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.core.adapters.siblings import Ahead
from luthier.core.contracts.form import Params
from luthier.core.contracts.kernel import Frozen, Guard, Held, Kernel, Layer, Run, Stack, Step, kernel_of, on

if TYPE_CHECKING:
    from luthier.core.adapters.container import Adapters
    from luthier.core.adapters.slot import Slot


def ready(adapters: Adapters, x: Tensor) -> Run | None:
    """The step that was settled for this layer, if it still holds for x."""
    step: Step | None = adapters.step
    if step is None or torch.compiler.is_compiling() or not on():
        return None
    if torch.is_grad_enabled() or step.rows is not adapters.current.rows or not step.guard.holds():
        adapters.step = None
        return None
    return step.run if step.dtype is x.dtype and not torch.is_autocast_enabled(x.device.type) else None


def fast_linear(module: nn.Module, adapters: Adapters, x: Tensor) -> Tensor | None:
    """What an adapted layer gives, by a kernel; None where the plain path is to run."""
    slots = adapters.fast
    if torch.compiler.is_compiling():
        return None
    if torch.is_grad_enabled():
        adapters.stack = None
    if not slots or not on():
        return None
    kernel = kernel_of(type(slots[0].form))
    assert kernel is not None  # or the slots were not fast
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or not _serves(module, slots, x, weight, bias):
        return None
    rows = adapters.current.rows
    if not torch.is_grad_enabled() and (step := _settled(kernel, module, adapters, x)) is not None:
        return step.run(x)
    if rows is not None or len(slots) > 1 or adapters.written:
        return None
    slot = slots[0]
    if slot.part.relative and slot.active() is not slot.quiet:  # the start is taken off without noise
        return None
    return _trained(kernel, adapters, Layer(slot.active(), _acting(kernel, slot), weight, bias), x)


def _trained(kernel: Kernel, adapters: Adapters, layer: Layer, x: Tensor) -> Tensor:
    """A layer's output, and with it those of the layers that read the same x next."""
    current = adapters.current
    if current.ahead is not None and (y := current.ahead.take(adapters, x)) is not None:
        return y
    others = _siblings(kernel, adapters, x) if adapters.siblings and "linears" in vars(kernel) else {}
    if not others:
        return kernel.linear(layer, x)
    y, *ys = kernel.linears([layer, *others.values()], x)
    current.ahead = Ahead(x, dict(zip(others, ys, strict=True)))
    return y


def _siblings(kernel: Kernel, adapters: Adapters, x: Tensor) -> dict[Adapters, Layer]:
    """The layers that read x next, as far as the same adapter is alone on them and they are as they will be called.

    What is gathered or fetched only when a layer is called (offloading, sharding) has another device or shape before.
    """
    part, found = adapters.fast[0].part, {}
    for module in adapters.siblings:
        home: Adapters | None = module._modules.get("adapters")  # type: ignore[assignment]
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        if home is None or weight is None or len(home.fast) != 1 or home.fast[0].part is not part or home.written:
            continue
        there = weight.device == x.device and weight.dim() == 2 and weight.shape[1] == x.shape[-1]
        if there and weight.untyped_storage().nbytes() and _serves(module, home.fast, x, weight, bias):
            slot = home.fast[0]
            found[home] = Layer(slot.active(), _acting(kernel, slot), weight, bias)
    return found


def _acting(kernel: Kernel, slot: Slot) -> Params:
    """The parameters that have the slot's effect, as they are stored."""
    return kernel.difference(slot.quiet, slot.own(), slot.start()) if slot.part.relative else slot.own()


def _settled(kernel: Kernel, module: nn.Module, adapters: Adapters, x: Tensor) -> Step | None:
    """The step of a layer outside training, where its kernel has one; it is kept if what it goes by can be watched."""
    slots, weight = adapters.fast, module._parameters["weight"]
    if any(slot.active() is not slot.quiet for slot in slots) or not {"decoder", "mixed"} <= set(vars(kernel)):
        return None
    assert weight is not None
    layer = Frozen(weight, module._parameters.get("bias"))
    holders: list[Held] = [module._parameters, *(slot._parameters for slot in slots)]
    if adapters.current.rows is not None:
        return _mixed(kernel, adapters, x.dtype, layer, holders)
    return _single(kernel, adapters, x, layer, holders) if len(slots) == 1 else None


def _mixed(
    kernel: Kernel, adapters: Adapters, dtype: torch.dtype, layer: Frozen, holders: Sequence[Held]
) -> Step | None:
    slots, rows, stack = adapters.fast, adapters.current.rows, adapters.stack
    if len({slot.name for slot in slots}) < len(slots):  # an adapter with two parts here
        return None
    if stack is None or not stack.serves(slots):
        pairs = [(slot.quiet, _acting(kernel, slot)) for slot in slots]
        places: dict[nn.Module, int] = {slot: index for index, slot in enumerate(slots)}
        stack = Stack(places, kernel.mixed(pairs, layer), Guard(holders, keeps=True))
    own: dict[str | None, int] = {slot.name: stack.places[slot] for slot in slots}
    guard = Guard(holders[:1], keeps=False) if adapters.current.frozen else stack.guard
    step = Step(dtype, rows, stack.arrange(tuple(own.get(row) for row in rows or ())), guard)
    if stack.guard.counted:
        adapters.stack, adapters.step = stack, step
    return step


def _single(kernel: Kernel, adapters: Adapters, x: Tensor, layer: Frozen, holders: Sequence[Held]) -> Step:
    (slot,) = adapters.fast
    keeps = slot.part.relative or vars(kernel).get("KEEPS", False)
    guard = Guard(holders, keeps, [t for t in slot._parameters.values() if t is not None and keeps])
    step = Step(x.dtype, None, kernel.decoder(slot.quiet, _acting(kernel, slot), layer), guard)
    if guard.counted and (not keeps or x.device.type == "cpu"):
        adapters.step = step
    return step


def _serves(module: nn.Module, slots: Sequence[Slot], x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        type(module)._luthier_base is nn.Linear  # type: ignore[attr-defined]
        and all(slot.spot is None for slot in slots)
        and weight.dtype == x.dtype
        and not (weight.requires_grad or (bias is not None and bias.requires_grad))
        and not torch.is_autocast_enabled(x.device.type)
        and type(weight) in (nn.Parameter, Tensor)  # neither sharded nor packed (torchao's has the layer's own dtype)
    )
