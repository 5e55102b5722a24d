"""Whether a sample tells the ranks, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDE = 2
"""Spread of a rank under resampling (97.5% less 2.5%) from which it says little."""


def verdict(blocks: Mapping[str, Mapping[str, Any]], points: int) -> str:
    """Returns what resampling and the null say of the ranks of `blocks`, found on `points` points."""
    wide = sum(block["high"] - block["low"] > WIDE for block in blocks.values())
    above = sum(block["rank"] > block["noise"] for block in blocks.values())
    if 2 * wide > len(blocks):
        return (
            f"{points} points are too few to tell: resampled, {wide} of {len(blocks)} ranks spread over more than "
            f"{WIDE}. Measure more rows (samples), or take uniform ranks."
        )
    if not above:
        return f"No block raises the dimension by more than the noise of {points} points: nothing tells ranks from 1."
    return f"{above} of {len(blocks)} blocks raise the dimension by more than the noise of {points} points."
