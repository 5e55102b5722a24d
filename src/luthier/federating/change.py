"""The change that clients and server send each other: factors for each layer, and fully trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.core.adapters.attach import state_of
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.aggregation import factors
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta

B, A, WHOLE = "B", "A", "whole"


@dataclass(frozen=True)
class Change:
    """A change of the base: s B A of layers, and other parameters as they now are (a head that is new)."""

    low: Mapping[str, Delta] = field(default_factory=dict)
    """By path of the layer; the scale is in B."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """By path of the parameter."""

    def tensors(self) -> dict[str, Tensor]:
        """Named tensors, as files and messages hold them."""
        found = {f"{WHOLE}:{path}": tensor.contiguous() for path, tensor in self.whole.items()}
        for path, delta in self.low.items():
            b, a = factors(delta)
            found |= {f"{B}:{path}": b.contiguous(), f"{A}:{path}": a.contiguous()}
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Change:
        """Returns the inverse of `tensors`; raises for names and shapes that are none of a change."""
        split: dict[str, dict[str, Tensor]] = {B: {}, A: {}, WHOLE: {}}
        for name, tensor in tensors.items():
            kind, _, path = name.partition(":")
            if kind not in split or not path:
                raise LuthierError(f"{name!r} is not part of a change; expected B:path, A:path or whole:path.")
            if not bool(tensor.isfinite().all()):
                raise LuthierError(f"{name} holds NaN or infinity.")
            split[kind][path] = tensor
        for path in {**split[B], **split[A]}:
            b, a = split[B].get(path), split[A].get(path)
            if b is None or a is None or b.dim() != 2 or a.dim() != 2 or b.shape[1] != a.shape[0]:
                raise LuthierError(f"the factors of {path} do not fit each other: {_shape(b)} and {_shape(a)}.")
        return cls({path: Delta.low_rank(split[B][path], split[A][path]) for path in split[B]}, split[WHOLE])

    @property
    def numbers(self) -> int:
        """How many numbers it takes to send."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer's change."""
        return {path: int(delta.rank or 0) for path, delta in self.low.items()}


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def taken(model: nn.Module, name: str) -> Change:
    """Returns the change that the adapter `name` makes, its tensors copied."""
    low, whole = {}, {}
    for tuner in _tuners(model, name):
        own = {key: tensor.detach().clone() for key, tensor in tuner.own().items()}
        if tuner.site.kind == "affine":
            low[tuner.site.path] = Delta.low_rank(
                tuner.form.scale * own[tuner.form.up_projection], own[tuner.form.down_projection]
            )
        else:
            (whole[tuner.site.path],) = own.values()
    return Change(low, whole)


def fill(model: nn.Module, name: str, change: Change) -> None:
    """Sets the adapter `name` to a change; what the change leaves out stays as it is.

    Of a smaller rank than the adapter's it fills the first directions, and the others, with B = 0, make no change.
    """
    with torch.no_grad():
        for tuner in _tuners(model, name):
            path, own = tuner.site.path, tuner.own()
            if tuner.site.kind != "affine" and path in change.whole:
                (tensor,) = own.values()
                tensor.copy_(change.whole[path])
            elif path in change.low:
                b, a = factors(change.low[path])
                own[tuner.form.up_projection].zero_()[:, : b.shape[1]] = b / tuner.form.scale
                own[tuner.form.down_projection][: len(a)] = a


def _tuners(model: nn.Module, name: str) -> Iterator[TunerLayer]:
    for component in state_of(model).components:
        if component.name == name:
            for tuner in component.tuners.values():
                if tuner.site.kind == "affine" and set(tuner.own()) != {
                    tuner.form.down_projection,
                    tuner.form.up_projection,
                }:
                    raise LuthierError(f"the change that {tuner.form.name()} makes is more than s B A; take lora.")
                if tuner.site.kind not in ("affine", "param") or (
                    tuner.site.kind == "param" and tuner.form.up_projection
                ):
                    raise LuthierError(f"{tuner.site} is not a linear layer; choose others (where).")
                yield tuner


@contextmanager
def folded(model: nn.Module, change: Change) -> Iterator[None]:
    """The model with the change in its weights while the context lasts; afterwards the very tensors are back."""
    before: dict[nn.Parameter, Tensor] = {}
    try:
        with torch.no_grad():
            for path, delta in change.low.items():
                module = model.get_submodule(path)
                _set(module, "weight", _changed(module, delta), before)
            for path, tensor in change.whole.items():
                owner, _, key = path.rpartition(".")
                _set(model.get_submodule(owner), key, tensor, before)
        yield
    finally:
        for parameter, tensor in before.items():
            parameter.data = tensor


def _changed(module: nn.Module, delta: Delta) -> Tensor:
    weight = module._parameters["weight"]
    assert weight is not None
    wide = torch.promote_types(weight.dtype, torch.float32)
    dense = delta.dense().to(weight.device, wide)
    return weight.to(wide) + (dense.mT if isinstance(module, Conv1D) else dense)


def _set(module: nn.Module, key: str, tensor: Tensor, before: dict[nn.Parameter, Tensor]) -> None:
    parameter = module._parameters[key]
    assert parameter is not None
    before.setdefault(parameter, parameter.data)
    parameter.data = tensor.to(parameter.device, parameter.dtype, copy=True)
