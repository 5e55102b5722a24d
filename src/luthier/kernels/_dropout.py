"""Dropout from one random byte a number: eight bytes come with each draw, and the mask takes a byte a number.

Layers that read the same tensor in a row (query, key and value; gate and up) meet the same mask: each of them has its
dropout at the rate it asked for, and one draw and one pass over x serve all.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 256


@dataclass(frozen=True)
class Dropped:
    """A tensor with dropout."""

    mask: Tensor
    """True where x is kept, [like x]."""
    x: Tensor
    """x where it is kept, 0 elsewhere; the scale 1 / keep belongs to a small factor, not to this pass."""


class _Last(threading.local):
    """The last draw of this thread, and for what."""

    made: tuple[weakref.ref[Tensor], int, float, Dropped] | None = None


_last = _Last()


def dropped(x: Tensor, rate: float) -> Dropped | None:
    """x with dropout; None at rate 0. The rate is rounded to 1/256, and to 1/256 at the least."""
    if not rate:
        return None
    if _last.made is not None:
        origin, version, known, found = _last.made
        if origin() is x and version == x._version and known == rate:
            return found
    mask = draw_mask(x, rate)
    found = Dropped(mask, x.detach() * mask)
    _last.made = (weakref.ref(x), x._version, rate, found)
    return found


def draw_mask(x: Tensor, rate: float) -> Tensor:
    """True where x is kept, [like x]."""
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()]
    return (bits >= _threshold(rate)).view(x.shape)


def keep(rate: float) -> float:
    """The share of numbers that are kept, after rounding."""
    return 1 - _threshold(rate) / LEVELS if rate else 1.0


def _threshold(rate: float) -> int:
    return min(LEVELS - 1, max(1, round(rate * LEVELS)))
