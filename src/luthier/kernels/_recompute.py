"""Recomputation (rematerialisation) of cheap activations: the backward pass keeps their inputs instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

RECOMPUTED = "_luthier_recomputed"
"""The attribute of a tensor that says how to recompute it."""
Make = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Recomputed:
    """How to recompute a tensor [..., d]: `make(*parts)`, as long as it was not modified in place."""

    make: Make
    parts: tuple[Tensor, ...]
    times: Make | None
    """`times(left, *parts)` is left @ make(*parts) without recomputing the tensor, where that is possible."""
    version: int


def mark_recomputable(x: Tensor, make: Make, *parts: Tensor, times: Make | None = None) -> Tensor:
    """Marks x as make(*parts). Neither function may hold a tensor, or checkpointing could not free it."""
    vars(x)[RECOMPUTED] = Recomputed(make, parts, times, x._version)
    return x


def saved_for_backward(x: Tensor, read: Tensor | None) -> tuple[Make, tuple[Tensor, ...]]:
    """Returns (times, tensors), which a backward pass keeps of `read` [..., d], x with dropout (None: x itself).

    times(left, mask, *tensors) is left [n, tokens] @ what was read; the mask is None without dropout.
    """
    made: Recomputed | None = vars(x).get(RECOMPUTED)
    if made is None or made.version != x._version:
        return _itself, (x if read is None else read,)
    return partial(_again, made.make, made.times), made.parts


def _itself(left: Tensor, mask: Tensor | None, read: Tensor) -> Tensor:
    return left @ read.reshape(-1, read.shape[-1])


def _again(make: Make, times: Make | None, left: Tensor, mask: Tensor | None, *parts: Tensor) -> Tensor:
    if times is not None and mask is None:
        return times(left, *parts)
    x = make(*parts)
    return _itself(left, None, x if mask is None else x * mask)
