"""Splits that a column tells: rows of training, validation and test in one file."""

from __future__ import annotations

import dataclasses
from typing import Any

from luthier.core.lazy import kept
from luthier.data.splits import of_split, split_of
from luthier.data.table import Table, present

COLUMN = "split"


def of_column(table: Table, split: str, where: str) -> Table | None:
    """Returns the rows of one split where a column `split` says of every row which of several it is in; None where none
    does. Raises `LuthierError` where no row is of the split that is asked for."""
    if COLUMN not in present(table.rows):
        return None
    told = [_kind(row.get(COLUMN)) for _, row in table.rows]
    kinds = set(told)
    if len(kinds) < 2 or "" in kinds:
        return None
    chosen = of_split(f"{where}, by its column 'split',", split, kinds, source=f"{where}::")
    rows = kept(table.rows, [place for place, kind in enumerate(told) if kind == chosen])
    return dataclasses.replace(table, rows=rows, read=(COLUMN,))


def _kind(value: Any) -> str:
    return split_of(value.strip(), whole=True) if isinstance(value, str) else ""
