"""Dispatch to kernels: a form's `luthier/kernels/<name>.py` computes a linear layer together with its adapter.

A file defines `linear`, or `decoder` and `mixed`, or all of them. `linear(layer, x) -> y` takes x [..., d_in] and a
`Layer`: a form with its parameters as they are stored, and a frozen dense weight [d_out, d_in] in the dtype of x. It
gives what the layer and the form give together, to rounding; that reference implementation is its oracle, and runs
wherever the kernel cannot: under torch.compile (which fuses by itself), autocast, sharding, quantised weights, beside
another adapter on the same layer, and where a form's routing is watched. With `linears(layers, x) -> ys`, layers of one
component that read the same x run as one (`luthier.core.adapters.siblings`).

In generation, one decoded token costs less than finding out what to do with it. So a kernel may also have
`decoder(form, p, layer) -> run` and `mixed(pairs, layer) -> assign_rows`, which are cached as a decode plan: `run(x)`
is the adapted layer, `layer(x)` the base's. `assign_rows(rows) -> run` is the layer for rows that use one of the pairs
each: the stacked adapters are kept while rows come and go. The parameters come as they are stored (float32).
What depends on them alone may be computed then and kept (`KEEPS`): a new plan is made when torch's counters say
that a tensor changed, when one was replaced or moved, and behind every pass with gradients, since some optimisers write
past the counters.
What is written through `.data` (averages of weights, say) has no counter. So on a CPU what is kept of a single adapter
also goes by the values of its parameters; on a GPU, where a look at them would stop the queue, nothing is kept of it.

A kernel with `difference(form, p, start) -> p'`, f(p') = f(p) - f(start) and exactly 0 at the start, also serves forms
whose start is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.core.adapters.siblings import PrefetchedOutputs
from luthier.core.contracts.form import Params
from luthier.core.contracts.kernel import (
    DecodePlan,
    Frozen,
    Guard,
    Held,
    Kernel,
    Layer,
    Part,
    Run,
    StackedAdapters,
    kernel_of,
    on,
)
from luthier.core.sites.packing import packing_now

if TYPE_CHECKING:
    from luthier.core.adapters.container import AdapterContainer
    from luthier.core.adapters.tuner import TunerLayer


def ready(adapters: AdapterContainer, x: Tensor) -> Run | None:
    """Returns the cached decode plan of this layer, if it is still valid for x."""
    plan: DecodePlan | None = adapters.decode_plan
    if plan is None or torch.compiler.is_compiling() or not on() or adapters.current.only is not None:
        return None
    if adapters.routed and adapters.current.routes is not None:
        return None
    packed = plan.rows is not None and packing_now() is not None
    if torch.is_grad_enabled() or packed or plan.rows is not adapters.current.rows or not plan.guard.holds():
        adapters.decode_plan = None
        return None
    return plan.run if plan.dtype is x.dtype and not torch.is_autocast_enabled(x.device.type) else None


def fast_linear(module: nn.Module, adapters: AdapterContainer, x: Tensor) -> Tensor | None:
    """Computes an adapted layer by a kernel; None where the reference implementation has to run."""
    current = adapters.current
    tuners = current.acting(adapters.fast)
    if torch.compiler.is_compiling():
        return None
    if torch.is_grad_enabled():
        adapters.stacked = None
    if not tuners or not on() or (adapters.routed and current.routes is not None):
        return None
    kernel = kernel_of(type(tuners[0].form))
    assert kernel is not None  # or the tuner layers were not fast
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or not _serves(module, tuners, x, weight, bias):
        return None
    rows = current.rows
    if rows is not None and (torch.is_grad_enabled() or packing_now() is not None):
        return _shared(kernel, module, adapters, x)
    if (
        not torch.is_grad_enabled()
        and current.only is None
        and (plan := _decode_plan(kernel, module, adapters, x)) is not None
    ):
        return plan.run(x)
    if rows is not None or len(tuners) > 1 or adapters.modified_in_place or "linear" not in vars(kernel):
        return None
    tuner = tuners[0]
    if tuner.component.subtract_start and tuner.active() is not tuner.eval_form:  # the start is subtracted in eval mode
        return None
    return _trained(kernel, adapters, tuner, Layer(tuner.active(), _acting(kernel, tuner), weight, bias), x)


def _trained(kernel: Kernel, adapters: AdapterContainer, tuner: TunerLayer, layer: Layer, x: Tensor) -> Tensor:
    """Computes a layer's output, and with it those of the layers that read the same x next."""
    current = adapters.current
    if current.prefetched is not None and (y := current.prefetched.take(adapters, x)) is not None:
        return y
    others = _siblings(kernel, adapters, tuner, x) if adapters.siblings and "linears" in vars(kernel) else {}
    if not others:
        return kernel.linear(layer, x)
    y, *ys = kernel.linears([layer, *others.values()], x)
    current.prefetched = PrefetchedOutputs(x, dict(zip(others, ys, strict=True)))
    return y


def _shared(kernel: Kernel, module: nn.Module, adapters: AdapterContainer, x: Tensor) -> Tensor | None:
    """Computes a layer for rows of several adapters at once; None where each has to be computed by itself."""
    tuners, current, weight = adapters.fast, adapters.current, module._parameters["weight"]
    names = {tuner.name: tuner for tuner in tuners}
    exact = all(not tuner.component.subtract_start or tuner.active() is tuner.eval_form for tuner in tuners)
    if "shared" not in vars(kernel) or len(names) < len(tuners) or not exact or adapters.modified_in_place:
        return None
    assert weight is not None
    runs = current.runs(x)
    if not any(name in names for name, _ in runs):
        return None
    held = {name: _acting(kernel, tuner) for name, tuner in names.items()}
    width, parts = x.shape[:-1].numel() // max(1, sum(count for _, count in runs)), []
    for place, (name, count) in enumerate(runs):
        tuner = names.get(name) if name is not None else None
        if tuner is None:
            parts.append(Part(count * width, None, {}))
        else:
            drawn = partial(current.drawn, tuner.name, place, x, weight)
            parts.append(Part(count * width, tuner.active(), held[tuner.name], tuner.rate, drawn))
    return kernel.shared(parts, Frozen(weight, module._parameters.get("bias")), x)


def _siblings(kernel: Kernel, adapters: AdapterContainer, own: TunerLayer, x: Tensor) -> dict[AdapterContainer, Layer]:
    """Finds the layers that read x next, as far as the same adapter is alone on them and they can be computed now.

    What is gathered or fetched only when a layer is called (offloading, sharding) has another device or shape before.
    """
    component, found = own.component, {}
    for module in adapters.siblings:
        container: AdapterContainer | None = module._modules.get("adapters")  # type: ignore[assignment]
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        if (
            container is None
            or weight is None
            or len(container.fast) != 1
            or container.fast[0].component is not component
            or container.modified_in_place
        ):
            continue
        there = weight.device == x.device and weight.dim() == 2 and weight.shape[1] == x.shape[-1]
        if there and weight.untyped_storage().nbytes() and _serves(module, container.fast, x, weight, bias):
            tuner = container.fast[0]
            found[container] = Layer(tuner.active(), _acting(kernel, tuner), weight, bias)
    return found


def _acting(kernel: Kernel, tuner: TunerLayer) -> Params:
    """The parameters that have the tuner layer's effect, as they are stored."""
    return (
        kernel.difference(tuner.eval_form, tuner.own(), tuner.start())
        if tuner.component.subtract_start
        else tuner.own()
    )


def _decode_plan(kernel: Kernel, module: nn.Module, adapters: AdapterContainer, x: Tensor) -> DecodePlan | None:
    """The decode plan of a layer in eval mode, if its kernel has one; it is cached if its tensors can be watched."""
    tuners, weight = adapters.fast, module._parameters["weight"]
    if any(tuner.active() is not tuner.eval_form for tuner in tuners) or not {"decoder", "mixed"} <= set(vars(kernel)):
        return None
    assert weight is not None
    layer = Frozen(weight, module._parameters.get("bias"))
    holders: list[Held] = [module._parameters, *(tuner._parameters for tuner in tuners)]
    if adapters.current.rows is not None:
        return _mixed(kernel, adapters, x.dtype, layer, holders)
    return _single(kernel, adapters, x, layer, holders) if len(tuners) == 1 else None


def _mixed(
    kernel: Kernel, adapters: AdapterContainer, dtype: torch.dtype, layer: Frozen, holders: Sequence[Held]
) -> DecodePlan | None:
    tuners, rows, stacked = adapters.fast, adapters.current.rows, adapters.stacked
    if len({tuner.name for tuner in tuners}) < len(tuners):  # an adapter with two components here
        return None
    if stacked is None or not stacked.serves(tuners):
        pairs = [(tuner.eval_form, _acting(kernel, tuner)) for tuner in tuners]
        indices: dict[nn.Module, int] = {tuner: index for index, tuner in enumerate(tuners)}
        stacked = StackedAdapters(indices, kernel.mixed(pairs, layer), Guard(holders, keeps=True))
    own: dict[str | None, int] = {tuner.name: stacked.indices[tuner] for tuner in tuners}
    guard = Guard(holders[:1], keeps=False) if adapters.current.frozen else stacked.guard
    plan = DecodePlan(dtype, rows, stacked.assign_rows(tuple(own.get(row) for row in rows or ())), guard)
    if stacked.guard.counted:
        adapters.stacked, adapters.decode_plan = stacked, plan
    return plan


def _single(
    kernel: Kernel, adapters: AdapterContainer, x: Tensor, layer: Frozen, holders: Sequence[Held]
) -> DecodePlan:
    (tuner,) = adapters.fast
    keeps = tuner.component.subtract_start or vars(kernel).get("KEEPS", False)
    guard = Guard(holders, keeps, [t for t in tuner._parameters.values() if t is not None and keeps])
    plan = DecodePlan(x.dtype, None, kernel.decoder(tuner.eval_form, _acting(kernel, tuner), layer), guard)
    if guard.counted and (not keeps or x.device.type == "cpu"):
        adapters.decode_plan = plan
    return plan


def _serves(module: nn.Module, tuners: Sequence[TunerLayer], x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        type(module)._luthier_base is nn.Linear  # type: ignore[attr-defined]
        and all(tuner.positions is None for tuner in tuners)
        and weight.dtype == x.dtype
        and not (weight.requires_grad or (bias is not None and bias.requires_grad))
        and not torch.is_autocast_enabled(x.device.type)
        and type(weight) in (nn.Parameter, Tensor)  # not sharded, not quantised (torchao keeps the dtype)
    )
