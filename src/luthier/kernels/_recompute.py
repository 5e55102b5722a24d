"""Activations that are cheap to make again: a backward pass keeps what they are made of, which is kept anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

RECOMPUTED = "_luthier_recomputed"
"""The attribute of a tensor that says how it is made."""
Make = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Recomputed:
    """`make(*parts)` is the tensor [..., d], as long as nobody wrote into it."""

    make: Make
    parts: tuple[Tensor, ...]
    times: Make | None
    """`times(left, *parts)` is left @ make(*parts), where that is had without making it."""
    version: int


def mark_recomputable(x: Tensor, make: Make, *parts: Tensor, times: Make | None = None) -> Tensor:
    """x, which knows that it is make(*parts). Neither function holds a tensor, or checkpointing could not let it go."""
    vars(x)[RECOMPUTED] = Recomputed(make, parts, times, x._version)
    return x


def saved_for_backward(x: Tensor, read: Tensor | None) -> tuple[Make, tuple[Tensor, ...]]:
    """(times, tensors): what a backward pass keeps of `read` [..., d], which is x with dropout (None: x itself).

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
