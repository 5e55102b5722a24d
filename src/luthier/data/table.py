"""Tables: what a source holds, before its layout is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


Numbered = tuple[int, Row | str]
"""(number from 1, the columns) of a good row, (number, reason) of one that cannot be read."""


@dataclass(frozen=True)
class Table:
    """What a source holds, before its layout is known."""

    rows: list[tuple[int, Row]]
    bad: list[tuple[int, str]] = field(default_factory=list)
    folder: Path | None = None
    """What relative image and audio paths start from."""
    classes: list[str] | None = None
    """Names of integer labels, where the source declares them."""
    starts: list[tuple[int, str]] = field(default_factory=list)
    """(number before the first row, file name) when several files follow one another."""

    def place(self, row: int) -> str:
        """`row` as a person finds it: `part-2.jsonl:17` among several files, else its number."""
        for before, name in reversed(self.starts):
            if row > before:
                return f"{name}:{row - before}"
        return str(row)
