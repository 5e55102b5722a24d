"""The words of an example, as selections read them."""

from __future__ import annotations

import re

from luthier.core.contracts.example import Example, last_answer
from luthier.core.errors import LuthierError

WORD = re.compile(r"\w+|[^\w\s]")
"""A word or a sign: numbers and operators tell code and sums apart, so no single character is left out."""


def full_text(example: Example) -> str:
    """Returns all that a row says, turns on lines of their own; raises for pictures and sounds."""
    if example.messages is not None:
        return _said(example, len(example.messages))
    return _text(example)


def prompt_text(example: Example) -> str:
    """Returns what a row asks, without its last answer (of a plain text: all of it); raises as `full_text` does."""
    if example.messages is not None:
        return _said(example, last_answer(example.messages))
    return _text(example)


def _said(example: Example, turns: int) -> str:
    if example.images:
        raise LuthierError(f"row {example.row} has pictures, and rows are selected by their words alone.")
    return "\n".join(m.get("content") or "" for m in (example.messages or [])[:turns])


def _text(example: Example) -> str:
    parts = [part for part in (example.text, example.text_pair) if part is not None]
    if not parts:
        raise LuthierError(f"row {example.row} has no words, by which rows are selected.")
    return "\n".join(parts)
