"""Dropout from one random byte per number: eight bytes come with each draw, and the mask takes one byte per number.

Layers that read the same tensor in a row (query, key and value; gate and up) meet the same mask: each of them has its
dropout at the rate it asked for, and one draw and one pass over x serve all. A layer that comes again draws again.
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


@dataclass
class _Draw:
    """A draw, what it was for, and which layers (by their weights) have had it."""

    origin: weakref.ref[Tensor]
    version: int
    rate: float
    found: Dropped
    readers: set[int]


class _Last(threading.local):
    """The last draw of this thread."""

    draw: _Draw | None = None


_last = _Last()


def dropped(x: Tensor, rate: float, weight: Tensor) -> Dropped | None:
    """x with dropout for the layer of `weight`; None at rate 0. The rate is rounded to 1/256, at least to that."""
    if not rate:
        return None
    known = _last.draw
    same = known is not None and known.origin() is x and known.version == x._version and known.rate == rate
    if known is not None and same and id(weight) not in known.readers:
        known.readers.add(id(weight))
        return known.found
    mask = draw_mask(x, rate)
    found = Dropped(mask, x.detach() * mask)
    _last.draw = _Draw(weakref.ref(x), x._version, rate, found, {id(weight)})
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
