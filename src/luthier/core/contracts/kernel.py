"""The contract of a kernel: functions that compute a linear layer together with its adapter."""

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
from luthier.core.threads import Thread

Run = Callable[[Tensor], Tensor]
"""A function that runs a layer: x [..., d_in] to y [..., d_out]."""


RowAdapters = tuple[int | None, ...]
"""The index of each row's adapter in the batch; None for the base."""


AssignRows = Callable[[RowAdapters], Run]
"""Builds the layer for a batch of rows, from the adapter of each row."""


Held = Mapping[str, Tensor | None]
"""The tensors of a module, by name."""


@dataclass(frozen=True)
class Frozen:
    """The base's own linear layer, as a function."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


F = TypeVar("F", bound=Form)


@dataclass(frozen=True)
class Layer(Generic[F]):
    """A linear layer of the base with the adapter on it."""

    form: F
    p: Params
    """The adapter's parameters, in the dtype in which they are stored."""
    weight: Tensor
    bias: Tensor | None

    def cast(self, dtype: torch.dtype) -> Params:
        """Returns the parameters in the dtype of the activations: they are small, so they are cast and not x."""
        return {key: tensor.to(dtype) for key, tensor in self.p.items()}


@dataclass(frozen=True, eq=False)
class Part(Generic[F]):
    """A run of tokens in a mixed batch under training, which belong to one adapter or to none."""

    tokens: int
    form: F | None
    """None: they are the base's."""
    p: Params
    rate: float = 0.0
    """The rate of the dropout that acts."""
    drawn: Callable[[Callable[[], Tensor]], Tensor] = lambda make: make()
    """Returns what a function draws, from the adapter's own random stream."""


class Kernel(Protocol):
    """The functions that a file of `luthier.kernels` may define: `linear`, or `decoder` and `mixed`, at least."""

    KEEPS: bool
    """Whether its decoder caches values that it computed from the parameters."""

    linear: Callable[[Layer, Tensor], Tensor]
    linears: Callable[[Sequence[Layer], Tensor], list[Tensor]]
    decoder: Callable[[Form, Params, Frozen], Run]
    mixed: Callable[[Sequence[tuple[Form, Params]], Frozen], AssignRows]
    difference: Callable[[Form, Params, Params], Params]
    shared: Callable[[Sequence[Part], Frozen, Tensor], Tensor]


class Guard:
    """Checks whether a cache that was computed from tensors is still valid."""

    def __init__(self, holders: Sequence[Held], keeps: bool, watched: Sequence[Tensor] = ()) -> None:
        """Notes the tensors in `holders`; with `keeps`, their contents must stay the same and not only their identity.

        The values of those that are `watched` are compared as well, by a copy.
        """
        self.tensors = [(held, name, t) for held in holders for name, t in held.items() if t is not None]
        self.counted = not any(t.is_inference() for _, _, t in self.tensors)
        self.stamps = [(t, t._version, t.data_ptr()) for _, _, t in self.tensors] if keeps and self.counted else []
        self.copies = [(t, t.detach().clone()) for t in watched]

    def holds(self) -> bool:
        """Returns whether every tensor is still the same one, with the same contents."""
        for held, name, tensor in self.tensors:
            if held[name] is not tensor:
                return False
        for tensor, version, place in self.stamps:
            if tensor._version != version or tensor.data_ptr() != place:
                return False
        return all(torch.equal(tensor, copy) for tensor, copy in self.copies)


@dataclass(frozen=True)
class DecodePlan:
    """A cached decode plan: an adapted layer prepared for generation, valid until one of its tensors changes."""

    dtype: torch.dtype
    rows: tuple[str | None, ...] | None
    """The adapter of each row that it was made for, the same tuple object that the state holds."""
    run: Run
    guard: Guard


@dataclass(frozen=True)
class StackedAdapters:
    """The adapters of one layer stacked for mixed batches, from which each row takes its own."""

    indices: Mapping[nn.Module, int]
    assign_rows: AssignRows
    guard: Guard

    def serves(self, tuners: Sequence[nn.Module]) -> bool:
        """Returns whether these adapters are in the stack, unchanged."""
        return all(tuner in self.indices for tuner in tuners) and self.guard.holds()


_on: ContextVar[bool] = ContextVar("fast paths are taken", default=True)
_plain: list[object] = []
"""The contexts of `plain` that last, of all threads."""
_thread = Thread()


def on() -> bool:
    """Returns whether this thread uses kernels and memory-saving forward passes.

    Threads of autograd work for others: they use them if no thread has them switched off.
    """
    return _on.get() and not (_plain and _thread.of_autograd)


@contextmanager
def reference_implementation() -> Iterator[None]:
    """Runs the reference implementation of every form and of the base while the context lasts.

    It holds for this thread, and for what the backward passes that it starts recompute.
    """
    token, mark = _on.set(False), object()
    _plain.append(mark)
    try:
        yield
    finally:
        _plain.remove(mark)
        _on.reset(token)


@functools.cache
def kernel_of(form: type[Form]) -> Kernel | None:
    """Returns the kernel in the file named after the form, or None; another class of that name has no kernel."""
    name = f"luthier.kernels.{form.name()}"
    if importlib.util.find_spec(name) is None or form.name() not in names("forms"):
        return None
    if find("forms", form.name()) is not form:
        return None
    return importlib.import_module(name)  # type: ignore[return-value]


class MemorySavingForward(Protocol):
    """The functions that a file of `luthier.kernels.memory_saving` defines."""

    reference: Callable[..., Any]
    """The reference implementation: the forward pass of such a module, as transformers writes it."""
    memory_saving: Callable[[nn.Module, Tensor], Tensor | None]
    """The memory-saving forward pass, with the same results bit for bit; None where it cannot be used."""


@functools.cache
def memory_saving_forwards() -> tuple[MemorySavingForward, ...]:
    """Finds every memory-saving forward pass."""
    package = importlib.import_module("luthier.kernels.memory_saving")
    found = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(importlib.import_module(f"{package.__name__}.{name}") for name in found)  # type: ignore[misc]
