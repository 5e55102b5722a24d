"""JSON files of one value: where the rows of an object are, and what stands beside them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.json_text import Marked
from luthier.data.around import AROUND
from luthier.data.splits import of_split, own_split, split_of
from luthier.data.table import Row, empty

HOLDERS = ("data", "rows", "examples", "instances", "records", "items")
"""Keys under which a JSON object may hold all rows."""


def whole(path: Path, found: Any) -> Any:
    """Returns the value of a whole file, in which rows may have a key twice, but not what holds the rows."""
    if isinstance(found, Marked) and any(isinstance(each, list) for each in found.values()):
        raise LuthierError(f"{path}: {found.twice}.")
    return found


def held(path: Path, value: Row, split: str) -> tuple[list[Any], tuple[str, ...]]:
    """Returns (the rows in an object, the keys beside them): rows of a split, under its one list, its columns, or the
    object as the only row. Raises for what stands beside rows and is meant for each of them."""
    inner = {key: rows for key, rows in value.items() if isinstance(rows, list | dict) and key not in AROUND}
    splits = {name: key for key in inner if (name := split_of(key, whole=True))} or _named_splits(inner)
    if splits and all(_holds_rows(inner[key]) for key in splits.values()):
        if more := [key for key in inner if key not in splits.values() and _lists_rows(inner[key])]:
            raise LuthierError(
                f"{path} has rows under {', '.join(splits.values())}, which are splits, and under {', '.join(more)}; "
                "name the splits train, validation and test, or give each a file."
            )
        beside = _beside(path, value, splits.values())
        return _rows_in(path, inner[splits[of_split(str(path), split, splits)]], split, beside)
    holder = next((key for key in HOLDERS if set(inner) == {key} and _holds_rows(inner[key])), None)
    if holder is not None:
        return _rows_in(path, inner[holder], split, _beside(path, value, (holder,)))
    if value and all(key.isdecimal() and isinstance(row, dict) for key, row in value.items()):
        return list(value.values()), ()
    columns = [_column(each) for each in value.values()]
    if len(columns) > 1 and None not in columns and len(set(map(len, columns))) == 1:  # type: ignore[arg-type]
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)], ()  # type: ignore[arg-type]
    return [value], ()


def _beside(path: Path, value: Row, holders: Collection[str]) -> tuple[str, ...]:
    """The keys that say something beside rows; raises for one that rows have as a column."""
    found = [key for key, each in value.items() if key not in holders and not empty(each)]
    if known := [key for key in found if key in AROUND]:
        raise LuthierError(
            f"{path} has {', '.join(map(repr, known))} beside its rows, where nothing reads it; write it into each row."
        )
    return tuple(found)


def _named_splits(inner: Row) -> dict[str, str]:
    """Keys that are splits of names of their own (`train_sft`), where all that is there is lists of rows under such."""
    named = all(split_of(key) and own_split(key) and _lists_rows(rows) for key, rows in inner.items())
    return {key: key for key in inner} if named else {}


def _lists_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and _holds_rows(value)


def _holds_rows(value: Any) -> bool:
    return isinstance(value, dict) or all(isinstance(row, dict | list) for row in value)


def _rows_in(path: Path, value: Any, split: str, beside: tuple[str, ...]) -> tuple[list[Any], tuple[str, ...]]:
    """(the rows in what a key holds, the keys beside it and them); those of the data set viewer lie a level deeper."""
    rows, more = (value, ()) if isinstance(value, list) else held(path, value, split)
    shown = bool(rows) and all(isinstance(row, dict) and {"row_idx", "row"} <= set(row) for row in rows)
    return [row["row"] for row in rows] if shown else rows, (*beside, *more)


def _column(value: Any) -> list[Any] | None:
    """The cells of a column, as `pandas` and `datasets` write tables column by column; None for what is none."""
    if isinstance(value, dict) and value and all(key.isdecimal() for key in value):
        return list(value.values())
    nested = isinstance(value, list) and any(isinstance(each, dict | list) for each in value)
    return value if isinstance(value, list) and not nested else None
