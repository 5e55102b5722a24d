"""The contract of a kernel: what computes an adapted linear layer in one piece."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form, Params

Run = Callable[[Tensor], Tensor]
"""A layer: x [..., d_in] to y [..., d_out]."""


RowAdapters = tuple[int | None, ...]
"""The number of each row's adapter, None for the base."""


AssignRows = Callable[[RowAdapters], Run]
"""The layer for a batch of rows."""


Held = Mapping[str, Tensor | None]
"""Tensors of a module, by name."""


@dataclass(frozen=True)
class Frozen:
    """The base's layer: a `Run`."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


F = TypeVar("F", bound=Form)


@dataclass(frozen=True)
class Layer(Generic[F]):
    """An adapted linear layer."""

    form: F
    p: Params
    """The parameters that have the form's effect, as they are stored."""
    weight: Tensor
    bias: Tensor | None

    def cast(self, dtype: torch.dtype) -> Params:
        """The parameters in the dtype of the activations: they are small, so they are cast and not x."""
        return {key: tensor.to(dtype) for key, tensor in self.p.items()}


class Kernel(Protocol):
    """What a file of `luthier.kernels` defines; all but the first may be missing."""

    KEEPS: bool
    """Its decoder keeps what it computed from the parameters."""

    linear: Callable[[Layer, Tensor], Tensor]
    linears: Callable[[Sequence[Layer], Tensor], list[Tensor]]
    decoder: Callable[[Form, Params, Frozen], Run]
    mixed: Callable[[Sequence[tuple[Form, Params]], Frozen], AssignRows]
    difference: Callable[[Form, Params, Params], Params]


class Guard:
    """Tells whether something that was made of tensors still counts."""

    def __init__(self, holders: Sequence[Held], keeps: bool, watched: Sequence[Tensor] = ()) -> None:
        """With `keeps`, it goes by what the tensors in `holders` were and not only by which they are.

        The values of those that are `watched` are compared as well, by a copy.
        """
        self.tensors = [(held, name, t) for held in holders for name, t in held.items() if t is not None]
        self.counted = not any(t.is_inference() for _, _, t in self.tensors)
        self.stamps = [(t, t._version, t.data_ptr()) for _, _, t in self.tensors] if keeps and self.counted else []
        self.copies = [(t, t.detach().clone()) for t in watched]

    def holds(self) -> bool:
        """Whether every tensor is the one that was there, and as it was."""
        for held, name, tensor in self.tensors:
            if held[name] is not tensor:
                return False
        for tensor, version, place in self.stamps:
            if tensor._version != version or tensor.data_ptr() != place:
                return False
        return all(torch.equal(tensor, copy) for tensor, copy in self.copies)


@dataclass(frozen=True)
class DecodePlan:
    """An adapted layer, ready to run as long as nothing about it changes."""

    dtype: torch.dtype
    rows: tuple[str | None, ...] | None
    """The rows it is for, the very tuple that the state holds."""
    run: Run
    guard: Guard


@dataclass(frozen=True)
class StackedAdapters:
    """What the adapters of a layer are together, whichever of them the rows use."""

    indices: Mapping[nn.Module, int]
    assign_rows: AssignRows
    guard: Guard

    def serves(self, tuners: Sequence[nn.Module]) -> bool:
        """Whether these are in it, as they are."""
        return all(tuner in self.indices for tuner in tuners) and self.guard.holds()


_on: ContextVar[bool] = ContextVar("fast paths are taken", default=True)


def on() -> bool:
    """Whether fast paths are taken, by this thread."""
    return _on.get()


@contextmanager
def reference_implementation() -> Iterator[None]:
    """Every form runs as its equation says, and every piece of the base as it came, in this thread while the context
    lasts."""
    token = _on.set(False)
    try:
        yield
    finally:
        _on.reset(token)


@functools.cache
def kernel_of(form: type[Form]) -> Kernel | None:
    """The kernel in the file that bears the form's name, or None; another class of that name has its own equation."""
    name = f"luthier.kernels.{form.name()}"
    if importlib.util.find_spec(name) is None or form.name() not in names("forms"):
        return None
    if find("forms", form.name()) is not form:
        return None
    return importlib.import_module(name)  # type: ignore[return-value]


class MemorySavingForward(Protocol):
    """What a file of `luthier.kernels.memory_saving` defines."""

    reference: Callable[..., Any]
    """The forward pass of such a module, as transformers writes it."""
    memory_saving: Callable[[nn.Module, Tensor], Tensor | None]
    """The same results bit for bit; None where it does not serve."""


@functools.cache
def memory_saving_forwards() -> tuple[MemorySavingForward, ...]:
    """Every piece, by discovery."""
    package = importlib.import_module("luthier.kernels.memory_saving")
    found = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(importlib.import_module(f"{package.__name__}.{name}") for name in found)  # type: ignore[misc]
