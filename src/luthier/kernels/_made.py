"""Activations that are cheap to make again: a backward pass keeps what they are made of, which is kept anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

MADE = "_luthier_made"
"""The attribute of a tensor that says how it is made."""
Make = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Made:
    """`make(*parts)` is the tensor, as long as nobody wrote into it."""

    make: Make
    parts: tuple[Tensor, ...]
    version: int


def mark(x: Tensor, make: Make, *parts: Tensor) -> Tensor:
    """x, which knows that it is make(*parts). `make` holds no tensor, so that checkpointing can let go of the parts."""
    vars(x)[MADE] = Made(make, parts, x._version)
    return x


def kept(x: Tensor, read: Tensor | None) -> tuple[Make, tuple[Tensor, ...]]:
    """(make, tensors): what a backward pass keeps of `read`, which is x with dropout (None: x itself).

    make(mask, *tensors) is what was read; the mask is None without dropout.
    """
    made: Made | None = vars(x).get(MADE)
    if made is None or made.version != x._version:
        return _itself, (x if read is None else read,)
    return partial(_again, made.make), made.parts


def _itself(mask: Tensor | None, read: Tensor) -> Tensor:
    return read


def _again(make: Make, mask: Tensor | None, *parts: Tensor) -> Tensor:
    x = make(*parts)
    return x if mask is None else x * mask
