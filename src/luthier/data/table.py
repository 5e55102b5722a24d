"""Tables: what a source holds, before its layout is known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.guard import reason
from luthier.core.lazy import Lazy, mapped, noted, noting

Row = dict[str, Any]


Numbered = tuple[int, Row | str]
"""A (number from 1, columns) of a good row, or a (number, reason) of one that cannot be read."""


@dataclass(frozen=True)
class Table:
    """What a source holds, before its layout is known."""

    rows: Sequence[tuple[int, Row]]
    bad: list[tuple[int, str]] = field(default_factory=list)
    folder: Path | None = None
    """What relative image and audio paths start from."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Names of the integer labels in a column, where the source declares them."""
    starts: list[tuple[int, str]] = field(default_factory=list)
    """The (number before the first row, file name) of each file, where there are several."""
    left: tuple[str, ...] = ()
    """Files of a folder that nothing reads."""
    beside: tuple[str, ...] = ()
    """What a file says beside its rows, which nothing reads."""
    read: tuple[str, ...] = ()
    """Columns by which these rows were chosen."""
    apart: str = ""
    """How many rows were left, of other splits, in words."""

    def place(self, row: int) -> str:
        """Returns `row` as a person finds it: `part-2.jsonl:17` among several files, else its number."""
        for before, name in reversed(self.starts):
            if row > before:
                return f"{name}:{row - before}"
        return str(row)


def empty(value: Any) -> bool:
    """Returns whether a cell says nothing."""
    return value is None or (isinstance(value, str | list | dict) and not value)


class Columns:
    """The columns of rows that are shown to it one by one."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._filled: set[str] = set()
        self._holding: set[str] = set()
        self._rows = 0

    def see(self, row: Row) -> None:
        """Takes in the next row."""
        self._rows += 1
        self._counts.update(row.keys())
        self._filled.update(column for column, value in row.items() if value is not None)
        self._holding.update(
            column for column, value in row.items() if column not in self._holding and not empty(value)
        )

    def any(self) -> dict[str, None]:
        """Returns the columns that any row has, in their order."""
        return dict.fromkeys(self._counts)

    def usual(self) -> set[str]:
        """Returns the columns that half of the rows have and one of them fills."""
        return {column for column, n in self._counts.items() if 2 * n >= self._rows and column in self._filled}

    def holding(self) -> set[str]:
        """Returns the columns that say something in any row."""
        return self._holding


def with_columns(rows: Lazy[tuple[int, Row]], found: Columns) -> Lazy[tuple[int, Row]]:
    """Returns the rows with what is known of their columns, so that no further pass looks for it."""
    bare = noting(mapped(rows, columns_of), {COLUMNS: found.usual(), HOLDING: found.holding()})
    rows.notes |= {PRESENT: found.any(), BARE: bare}
    return rows


COLUMNS, HOLDING, PRESENT, BARE = "columns", "holding", "present", "bare"
"""What is noted of rows that are read when they are asked for."""


def columns_of(numbered: tuple[int, Row]) -> Row:
    """Returns a row without its number."""
    return numbered[1]


def bare(table: Table) -> Sequence[Row]:
    """Returns the rows of a table without their numbers."""
    return noted(table.rows, BARE, lambda: mapped(table.rows, columns_of))


def present(rows: Sequence[tuple[int, Row]]) -> dict[str, None]:
    """Returns the columns that any row has, in their order."""
    return noted(rows, PRESENT, lambda: dict.fromkeys(column for _, row in rows for column in row))


def numbered_after(before: int, numbered: tuple[int, Row]) -> tuple[int, Row]:
    """Returns a row of a file that follows another, of which the last has the number `before`."""
    return before + numbered[0], numbered[1]


WHOLE = re.compile(r"-?\d{1,18}")


def index_of(label: Any, names: Collection[str]) -> Any:
    """Returns a label that is the number of one of `names` as a number, where a file of texts holds it as text."""
    numbered = bool(names) and isinstance(label, str) and label not in names and WHOLE.fullmatch(label.strip())
    return int(label) if numbered else label


def with_class_names(row: Row, table: Table) -> Row:
    """Returns the row with its integer labels by name, where the source declares names."""
    found = dict(row)
    for column, names in table.classes.items():
        label = index_of(row.get(column), names)
        if isinstance(label, int) and 0 <= label < len(names):
            found[column] = names[label]
    return found


BLOCK = 1024
"""Rows of an Arrow table that become Python's at a time."""


def table_rows(table: Any) -> Iterator[Row | str]:
    """Yields the rows of an Arrow table; of one that Python cannot hold (a date behind the year 9999, bytes that are no
    text), the reason."""
    for start in range(0, table.num_rows, BLOCK):
        block = table.slice(start, BLOCK)
        try:
            yield from block.to_pylist()
        except Exception:
            yield from (_row(block, index) for index in range(block.num_rows))


def _row(block: Any, index: int) -> Row | str:
    try:
        return block.slice(index, 1).to_pylist()[0]
    except Exception as error:
        return f"it holds a value that cannot be read: {reason(error)}"


def known(row: Row) -> Row:
    """A row whose cells that are no number (NaN, as pandas and NumPy write what is missing) are missing."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}


def without_nulls(value: Any) -> Any:
    """A value without the nulls in its objects: Arrow gives each struct the keys of all others, and so do files that
    are written from its tables."""
    if isinstance(value, list) and value and all(isinstance(each, tuple) for each in value):  # a map
        value = dict(value)
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
