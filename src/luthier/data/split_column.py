"""Splits that a column tells: rows of training, validation and test in one file."""

from __future__ import annotations

import dataclasses
from typing import Any

from luthier.core.lazy import kept
from luthier.data.splits import of_split, split_of
from luthier.data.table import Table, present

COLUMN = "split"


def divides(split: str | None, *taken: str) -> bool:
    """Returns whether a split that is given divides a file by its column, which is not `taken` for something else."""
    return split is not None and COLUMN not in taken


def of_column(table: Table, split: str, where: str, named: bool = True) -> Table | None:
    """Returns the rows of one split where a column `split` says of every row which of several it is in; None where none
    does, and where a split that nobody `named` is `test` and no row is of it. Raises `LuthierError` where no row is of
    any other split that is asked for."""
    if COLUMN not in present(table.rows):
        return None
    told = [_kind(row.get(COLUMN)) for _, row in table.rows]
    kinds = set(told)
    if len(kinds) < 2 or "" in kinds or (split == "test" and not named and split not in kinds):
        return None
    chosen = of_split(f"{where}, by its column 'split',", split, kinds, source=f"{where}::")
    rows = kept(table.rows, [place for place, kind in enumerate(told) if kind == chosen])
    apart = f"{len(told) - len(rows):,} of {len(told):,} rows (not of split {chosen}, by the column split)"
    return dataclasses.replace(table, rows=rows, read=(COLUMN,), apart=apart)


def _kind(value: Any) -> str:
    return split_of(value.strip(), whole=True) if isinstance(value, str) else ""
