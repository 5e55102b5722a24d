"""Memory-saving forward passes for a frozen base: they keep less for the backward pass than autograd does.

A file of `luthier.kernels.memory_saving` has two functions: `reference(self, x)`, the forward pass of such a module as
transformers writes it, and `memory_saving(module, x)`, which gives the same results bit for bit (None: not here). Every
module whose own forward pass compiles to the bytecode of `reference` is patched, in whatever architecture; while
adapters are on its model, passes with gradients run the second. Where that cannot be (torch.compile, which fuses
by itself, autocast, float64, `luthier.core.contracts.kernel.reference_implementation`), it runs as it did.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.kernel import memory_saving_forwards, on
from luthier.core.sites.structure import base_modules, namesake

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def patch(model: nn.Module) -> None:
    """Patches the modules of a model that have a memory-saving forward pass."""
    for _, module in base_modules(model):
        found = patched_class(type(module))
        if found is not None and "forward" not in vars(module):  # nor one that was replaced on the instance
            module.__class__ = found


def unpatch(model: nn.Module) -> None:
    """Restores the classes of patched modules."""
    for _, module in base_modules(model):
        if (plain := vars(type(module)).get("_luthier_reference")) is not None:
            module.__class__ = plain


@functools.cache
def patched_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """A subclass of the same name with the memory-saving forward pass; None if there is none, or it is patched."""
    base = cls.forward
    replacement = next((each for each in memory_saving_forwards() if _code(base) == _code(each.reference)), None)
    if replacement is None or "_luthier_reference" in vars(cls):
        return None

    @functools.wraps(base)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = replacement.memory_saving(self, args[0]) if len(args) == 1 and not kwargs and _serves(args[0]) else None
        return base(self, *args, **kwargs) if y is None else y

    def __reduce_ex__(self, protocol):
        return _blank, (cls,), cls.__reduce_ex__(self, protocol)[2]

    return namesake(cls, {"forward": forward, "__reduce_ex__": __reduce_ex__, "_luthier_reference": cls})


def _blank(plain: type[nn.Module]) -> nn.Module:
    """A piece that pickle and copy fill."""
    made = patched_class(plain) or plain
    return made.__new__(made)


def _code(function: Callable) -> tuple:
    """The bytecode of a function, without its docstring."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return () if code is None else (code.co_code, code.co_names, code.co_varnames, code.co_consts[1:])


def _serves(x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and on()
        and x.dtype in DTYPES
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(x.device.type)
    )
