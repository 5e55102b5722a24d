"""What data hold and nothing reads, named before training by the trainings that read rows of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console

from luthier import data
from luthier.core.contracts.example import Examples

RENDERED = ("causal-lm", "reward")
"""Tasks whose rows a chat template renders."""


def unread_of(processor: Any, *parts: Examples) -> list[str]:
    """Returns what no layout reads, less the keys of turns that the chat template reads."""
    names = dict.fromkeys(name for part in parts for name in part.unread)
    rows = (row for part in parts for row in part.rows)
    return data.unheard(names, rows, processor) if parts[0].task in RENDERED else list(names)


def name_unread(console: Console, processor: Any, parts: Iterable[Examples | None]) -> None:
    """Names what nothing reads, a line for each source."""
    for part in parts:
        if part is not None and (names := unread_of(processor, part)):
            tell(console, names, part.source)


def tell(console: Console, names: Iterable[str], source: str) -> None:
    """Prints the line that names what nothing reads of a source."""
    console.print(f"not read: {', '.join(names)} of {source}", highlight=False, markup=False, soft_wrap=True)
