"""What an adapted module computes: its base and the edits of its forms, for a batch of one adapter or of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from luthier.core.adapters import siblings
from luthier.core.adapters.call import OneHot
from luthier.core.adapters.container import AdapterContainer
from luthier.core.adapters.dispatch import fast_linear
from luthier.core.adapters.lower import acting_on, bias_change, merged_weight, under
from luthier.core.adapters.pass_ import Edit, Pass
from luthier.core.adapters.share import Share, by_name, joined, put
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.errors import LuthierError
from luthier.core.sites.outputs import leading, led
from luthier.core.sites.structure import is_sharded, weight_of


def adapted_tensor(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Returns a parameter with the edits of its forms; a sharded one is read by the sharding itself."""
    adapters: AdapterContainer = module._modules["adapters"]  # type: ignore[assignment]
    if adapters.owners and not adapters.current.running.get(adapters.path) and not is_sharded(tensor):
        return _for_owner(module, adapters, name, tensor)
    if not adapters.params or is_sharded(tensor):
        return tensor
    if adapters.current.reached is not None:
        adapters.current.reached.update(tuner.origin.key for tuner in acting_on(adapters.params, name))
    return under(adapters.current.acting(adapters.params), name, tensor)


def _for_owner(module: nn.Module, adapters: AdapterContainer, name: str, tensor: Tensor) -> Tensor:
    """A linear layer's tensor as its owner is to read it: that of the map which the layer and its forms are."""
    if adapters.current.rows is not None:
        raise LuthierError(
            f"{adapters.path} is read by the module that holds it, once for all rows; a mixed batch cannot have "
            "adapters there. Use one adapter for all rows."
        )
    if adapters.current.reached is not None:
        adapters.current.reached.update(tuner.origin.key for tuner in adapters.tuners())
    tuners = adapters.current.acting([*adapters.params, *adapters.owners])
    if name == "bias":
        return under(tuners, name, tensor) + bias_change(module, tuners).to(tensor.dtype)
    new = merged_weight(module, tuners).to(tensor.dtype)
    return new.mT if isinstance(module, Conv1D) else new


def adapted(module, adapters: AdapterContainer, base: Callable, first: str, args: tuple, kwargs: dict) -> Any:
    """Returns the output of a module; `first` is the name of its first argument, which is edited."""
    current = adapters.current
    x: Any = args[0] if args else kwargs.get(first)  # a model may be called by other names alone
    if current.reached is not None:
        current.reached.update(s.site.key for s in adapters.tuners() if s.site.kind != "param")
        if adapters.fast:
            current.shared_input = siblings.note(current.shared_input, module, adapters.siblings, x)
    if current.rows is not None and ".experts." in adapters.path:
        raise LuthierError(
            f"{adapters.path} is given the tokens that were routed to it, of any rows; a mixed batch cannot have "
            "adapters on the experts of a mixture. Use one adapter for all rows."
        )
    if (y := fast_linear(module, adapters, x)) is not None:
        if current.reached is not None:
            current.returned.append((adapters, y, y._version))
        return y
    x = _edited(current, adapters.inputs, x, lambda tuner, _, part: tuner.post(current, part, part))
    entering = _edited(current, adapters.pres, x, lambda tuner, _, part: tuner.pre(part))
    args, kwargs = ((entering, *args[1:]), kwargs) if args else ((), {**kwargs, first: entering})
    y = _through_module(module, adapters, base, entering, args, kwargs)
    if not adapters.posts:
        return y
    out = leading(y)
    out = _edited(
        current, adapters.posts, out, lambda tuner, seen, part: tuner.post(current, _read(tuner, seen), part), x
    )
    return led(y, out)


def _read(tuner: TunerLayer, x: Any) -> Any:
    """What a form reads: of an embedding table, rows of zeros with a one where the id is."""
    return OneHot(x) if tuner.site.kind == "embedding" else x


Step = Callable[[TunerLayer, Any, Any], Any]
"""`(tuner, x, y) -> y`: an edit of y, which may read x."""


def _edited(current: Pass, tuners: Sequence[TunerLayer], y: Any, step: Step, x: Any = None) -> Any:
    """Returns y as the forms edit it one after the other; in a mixed batch, the rows of each adapter by its own."""
    if current.rows is None:
        for tuner in current.acting(tuners):
            y = step(tuner, x, y)
        return y
    parts: list[tuple[Share, Tensor]] = []
    for name, own in by_name(tuners, _name).items():
        if (share := current.share([name], y)) is None:
            continue
        part, seen = share.take(y), share.of(x, y)
        with current.within(share, own[0].owner, any(tuner.draws for tuner in own)):
            for tuner in own:
                part = step(tuner, seen, part)
        parts.append((share, part))
    return put(y, parts)


def _name(tuner: TunerLayer) -> str:
    return tuner.name


def _through_module(module, adapters: AdapterContainer, base: Callable, x, args: tuple, kwargs: dict) -> Any:
    """The base pass, or that of a form which runs the module itself; in a mixed batch each row has its own."""
    current, tuners = adapters.current, adapters.current.acting(adapters.insides)
    run = lambda x, edits: _edited_inside(module, adapters, base, x, edits)  # noqa: E731
    if current.rows is None and tuners:
        if len(tuners) > 1:
            names = ", ".join(tuner.name for tuner in tuners)
            raise LuthierError(f"{names} would each run {adapters.path} in their own way; enable one of them (use).")
        return tuners[0].inside(current, x, run)
    y = _through_weights(module, adapters, base, x, args, kwargs)
    if not tuners:
        return y
    return _edited(current, tuners, y, lambda tuner, seen, _: tuner.inside(current, seen, run), x)


def beside(adapters: AdapterContainer, owner: str, out: Any) -> Any:
    """What leaves a block, noted for forms that read it; the state beside it goes on, and is added behind the last.

    It runs outside the block, so that recomputed activations leave the state alone.
    """
    current = adapters.current
    h = leading(out)
    if adapters.reads_rows and current.seen is not None:
        current.seen.states.append(h)
    if not adapters.asides and not (adapters.final and current.aside.get(owner)):
        return out
    states = current.aside.setdefault(owner, {})
    for tuner in current.acting(adapters.asides):
        before = states.get(tuner.name)
        before = torch.zeros_like(h) if before is None else before
        states[tuner.name] = _edited(current, [tuner], before, lambda tuner, seen, part: tuner.aside(seen, part), h)
    if not adapters.final:
        return out
    for state in current.aside.pop(owner).values():
        h = h + state
    return led(out, h)


def _edited_inside(
    module: nn.Module, adapters: AdapterContainer, base: Callable, x: Tensor, edits: Mapping[str, Edit]
) -> Any:
    """The module's own pass on x, with other functions in place of linear layers that it holds."""
    current = adapters.current
    before, current.inside = current.inside, {f"{adapters.path}.{name}": edit for name, edit in edits.items()}
    try:
        return base(module, x)
    finally:
        current.inside = before


def _through_weights(module, adapters: AdapterContainer, base: Callable, x, args: tuple, kwargs: dict) -> Any:
    """The base pass, or a linear layer's with the weight that its forms make."""
    current = adapters.current
    if current.rows is not None and (adapters.weights or adapters.params):
        return _mixed_weights(module, adapters, base, x, args, kwargs)
    weights = current.acting(adapters.weights)
    return _linear(module, weights, x) if weights else base(module, *args, **kwargs)


def _mixed_weights(module, adapters: AdapterContainer, base: Callable, x, args: tuple, kwargs: dict) -> Tensor:
    """Each row by the weight that its adapter makes."""
    current, every = adapters.current, [*adapters.weights, *adapters.params]
    if not isinstance(x, Tensor) or len(args) + len(kwargs) > 1:
        return _mixed_outputs(module, adapters, base, x, args, kwargs)
    call = (lambda part: base(module, part)) if args else (lambda part: base(module, **{next(iter(kwargs)): part}))
    parts: list[tuple[Share, Tensor]] = []
    for name, own in by_name(every, _name).items():
        if (share := current.share([name], x)) is None:
            continue
        part, weights = share.take(x), [tuner for tuner in own if tuner.site.kind != "param"]
        with current.within(share, own[0].owner, any(tuner.draws for tuner in own)):
            parts.append((share, _linear(module, weights, part) if weights else call(part)))
    if (rest := current.share([tuner.name for tuner in every], x, others=True)) is not None:
        with current.within(rest, "", False):
            parts.append((rest, call(rest.take(x))))
    return joined(parts)


def _mixed_outputs(module, adapters: AdapterContainer, base: Callable, x, args: tuple, kwargs: dict) -> Tensor:
    """The same of a module with more than one argument, by all rows with every weight; a row keeps that of its own."""
    current, every = adapters.current, [*adapters.weights, *adapters.params]
    if current.streams is not None:
        raise LuthierError(
            f"{adapters.path} is called with more than one argument, so the rows of adapters that change its tensors "
            f"({', '.join(by_name(every, _name))}) cannot be told apart; train them one by one."
        )
    with current.bare():
        y = base(module, *args, **kwargs)
    for name, own in by_name(every, _name).items():
        if (share := current.share([name], y)) is None:
            continue
        weights = [tuner for tuner in own if tuner.site.kind != "param"]
        with current.bare(name):
            new = _linear(module, weights, x) if weights else base(module, *args, **kwargs)
        y = put(y, [(share, share.take(new))])
    return y


def _linear(module: nn.Module, tuners: Sequence[TunerLayer], x: Tensor) -> Tensor:
    stored = module._parameters["weight"]
    assert stored is not None
    weight = weight_of(module, adapted_tensor(module, "weight", stored))
    for tuner in tuners:
        weight = tuner.weight(weight)
    bias = module._parameters.get("bias")
    return functional.linear(x, weight.to(x.dtype), None if bias is None else adapted_tensor(module, "bias", bias))
