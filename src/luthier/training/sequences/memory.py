"""The buffer of earlier tasks: reservoir sampling, so that every row seen so far is in it with one probability."""

from __future__ import annotations

import random
from collections.abc import Sequence

Kept = list[tuple[int, int]]
"""Rows by (task, place in the task)."""


def reservoir(counts: Sequence[int], size: int, seed: int) -> Kept:
    """Returns the rows that a buffer of `size` holds after tasks of these many rows were seen, one after another.

    Vitter's algorithm R: row number n (from 0) takes a random place below n + 1, if that is one of the buffer's. It
    follows from its arguments alone, so a resumed run has the same rows; more tasks go on from the same draws.
    """
    draw, held, seen = random.Random(f"reservoir {seed}"), [], 0
    for task, count in enumerate(counts):
        for row in range(count):
            if seen < size:
                held.append((task, row))
            elif (place := draw.randrange(seen + 1)) < size:
                held[place] = (task, row)
            seen += 1
    return held


def repeated(held: Sequence[tuple[int, int]], rows: int, share: float, seed: int) -> Kept:
    """Returns rows of the buffer, each as often as the others up to one, that are `share` of all beside `rows`."""
    wanted = round(rows * share / (1 - share))
    shuffled = random.Random(f"replay {seed} {rows}").sample(list(held), len(held))
    return [shuffled[i % len(shuffled)] for i in range(wanted)] if shuffled else []


def drawn(held: Sequence[tuple[int, int]], count: int, seed: int, step: int) -> Kept:
    """Returns `count` rows of the buffer for a step, without repetition as far as there are so many."""
    return random.Random(f"rehearsal {seed} {step}").sample(list(held), min(count, len(held)))
