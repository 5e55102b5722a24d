"""Random draws that follow from a text, so that an episode or a task is drawn alike whenever it is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def draw_of(key: str) -> torch.Generator:
    """Returns a generator that is seeded by a text."""
    return torch.Generator().manual_seed(random.Random(key).getrandbits(63))


def some_of(items: Sequence[T], count: int, key: str) -> list[T]:
    """Returns `count` of the items, or all where there are fewer, drawn by a text."""
    return random.Random(key).sample(list(items), min(count, len(items)))
