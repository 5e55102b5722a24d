"""Dropout from one random byte a number: eight bytes come with each draw, and the mask takes a byte a number."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256


def draw_mask(x: Tensor, rate: float) -> Tensor | None:
    """True where x is kept, [like x]; None at rate 0. The rate is rounded to 1/256, and to 1/256 at the least."""
    if not rate:
        return None
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()]
    return (bits >= _threshold(rate)).view(x.shape)


def keep(rate: float) -> float:
    """The share of numbers that are kept, after rounding."""
    return 1 - _threshold(rate) / LEVELS if rate else 1.0


def _threshold(rate: float) -> int:
    return min(LEVELS - 1, max(1, round(rate * LEVELS)))


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x where it is kept, 0 elsewhere; the scale 1 / keep belongs to a small factor, not to this pass."""
    return x if mask is None else x * mask
