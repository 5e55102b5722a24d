"""Pieces of a frozen base that keep less for the backward pass than autograd makes of them.

A piece is a file of `luthier.kernels.pieces` with two functions: `plain(self, x)`, written as transformers writes the
forward pass of such a module, and its twin `lean(module, x)`, with the same results bit for bit (None: not here). Every
module whose own forward pass compiles to the bytecode of `plain` is such a piece, in whatever architecture; while
adapters are on its model, it runs the twin in passes with gradients. Where that cannot be (torch.compile, which fuses
by itself, autocast, float64, `luthier.core.contracts.kernel.plain`), it runs as it did.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.kernel import on, pieces
from luthier.core.sites.structure import base_modules, namesake

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lean(model: nn.Module) -> None:
    """Gives the pieces of a model their twins."""
    for _, module in base_modules(model):
        found = _lean_class(type(module))
        if found is not None and "forward" not in vars(module):  # nor one that was replaced on the instance
            module.__class__ = found


def fatten(model: nn.Module) -> None:
    """Gives the pieces their classes back."""
    for _, module in base_modules(model):
        if (plain := vars(type(module)).get("_luthier_plain")) is not None:
            module.__class__ = plain


@functools.cache
def _lean_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """A subclass of the same name with the twin of its forward pass; None if it is no piece, or is one already."""
    base = cls.forward
    piece = next((each for each in pieces() if _code(base) == _code(each.plain)), None)
    if piece is None or "_luthier_plain" in vars(cls):
        return None

    @functools.wraps(base)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y = piece.lean(self, args[0]) if len(args) == 1 and not kwargs and _serves(args[0]) else None
        return base(self, *args, **kwargs) if y is None else y

    return namesake(cls, {"forward": forward, "_luthier_plain": cls})


def _code(function: Callable) -> tuple:
    """What a function does, its docstring aside."""
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
