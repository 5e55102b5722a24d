"""Tables: what a source holds, before its layout is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


Numbered = tuple[int, Row | str]
"""A (number from 1, columns) of a good row, or a (number, reason) of one that cannot be read."""


@dataclass(frozen=True)
class Table:
    """What a source holds, before its layout is known."""

    rows: list[tuple[int, Row]]
    bad: list[tuple[int, str]] = field(default_factory=list)
    folder: Path | None = None
    """What relative image and audio paths start from."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Names of the integer labels in a column, where the source declares them."""
    starts: list[tuple[int, str]] = field(default_factory=list)
    """The (number before the first row, file name) of each file, where there are several."""
    left: tuple[str, ...] = ()
    """Files of a folder that nothing reads."""

    def place(self, row: int) -> str:
        """`row` as a person finds it: `part-2.jsonl:17` among several files, else its number."""
        for before, name in reversed(self.starts):
            if row > before:
                return f"{name}:{row - before}"
        return str(row)


def with_class_names(row: Row, table: Table) -> Row:
    """The row with its integer labels by name, where the source declares names."""
    found = dict(row)
    for column, names in table.classes.items():
        label = row.get(column)
        if isinstance(label, int) and 0 <= label < len(names):
            found[column] = names[label]
    return found


def without_nulls(value: Any) -> Any:
    """A value of an Arrow table without the nulls in its structs: Arrow gives each struct the keys of all others."""
    if isinstance(value, list) and value and all(isinstance(each, tuple) for each in value):  # a map
        value = dict(value)
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
