"""Rewards of a user's own file, good ones and bad ones."""

from __future__ import annotations

import math


def digits(prompt: str, answer: str, example) -> float:
    """The share of digits."""
    return sum(c.isdigit() for c in answer) / max(1, len(answer))


def short(prompt: str, answer: str, example) -> float:
    return -float(len(answer))


def half_broken(prompt: str, answer: str, example) -> float:
    """Raises on some answers and is NaN on others."""
    if len(answer) % 3 == 0:
        raise KeyError("no such answer")
    return math.nan if len(answer) % 3 == 1 else float(len(answer))


def broken(prompt: str, answer: str, example) -> float:
    raise RuntimeError("out of order")


def leaves(prompt: str, answer: str, example) -> float:
    raise SystemExit(3)


def of_two(prompt: str, answer: str) -> float:
    return 1.0


def constant(prompt: str, answer: str, example) -> float:
    return 1.0


NUMBER = 3


def even_sums(prompt: str, answer: str, example) -> float:
    """One reward for every answer to an odd sum, the length for one to an even sum."""
    return float(len(answer)) if int(example.messages[-1]["content"]) % 2 == 0 else 0.0
