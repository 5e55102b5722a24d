"""Files that are larger than memory should hold: their rows are read when they are asked for."""

from __future__ import annotations

import bisect
import codecs
import itertools
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.lazy import Lazy
from luthier.data.table import Columns, Row, known, table_rows, with_columns, without_nulls

LARGE = 32 * 2**20
"""Bytes from which on a file stays on disk: a row of it is some five times as large in memory."""
Rows = Lazy[tuple[int, Row]]


def large(path: Path) -> bool:
    """Whether the rows of a file are left where they are; those of UTF-16 are not, whose lines no byte alone ends."""
    if path.stat().st_size < LARGE:
        return False
    with path.open("rb") as file:
        return not file.read(2).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


class Lines:
    """The lines of a file that hold rows: where each begins, and its number; the file may not change meanwhile."""

    def __init__(self, path: Path, parse: Callable[[bytes], Row | str | None]) -> None:
        """`parse` gives the columns of a line, why it is bad, or None for one that is blank."""
        self.path, self.parse = path, parse
        self.bad: list[tuple[int, str]] = []
        self.columns = Columns()
        self._numbers, self._starts, self._sizes = array("q"), array("q"), array("q")
        with guarded(f"{path} cannot be read"):
            self._handle = path.open("rb", buffering=0)
            self._stamp = self._now()
            for number, start, line in self._read():
                found = parse(line)
                if isinstance(found, str):
                    self.bad.append((number, found))
                elif found is not None:
                    self.columns.see(found)
                    self._numbers.append(number)
                    self._starts.append(start)
                    self._sizes.append(len(line))

    def _read(self) -> Iterator[tuple[int, int, bytes]]:
        start = 0
        with self.path.open("rb", buffering=2**20) as file:
            for number, line in enumerate(file, 1):
                yield number, start, line
                start += len(line)

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._handle.fileno())
        return state.st_size, state.st_mtime_ns

    def rows(self) -> Rows:
        """Returns the good rows, each read when it is asked for."""
        return with_columns(Lazy(range(len(self._starts)), self._row), self.columns)

    def _row(self, place: int) -> tuple[int, Row]:
        with guarded(f"{self.path} cannot be read"):
            line = os.pread(self._handle.fileno(), self._sizes[place], self._starts[place])
        found = self.parse(line) if self._now() == self._stamp else None
        if not isinstance(found, dict):
            raise LuthierError(f"{self.path} changed while it was read; start again once it stays as it is.")
        return self._numbers[place], found


class Groups:
    """The rows of a Parquet file, of which memory holds one group at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self.path = path
        with guarded(f"{path} is not a readable Parquet file"):
            self._file = pyarrow.parquet.ParquetFile(path)
            sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)][: len(sizes)]
        self._held: tuple[int, Any] = (-1, None)
        self.bad: list[tuple[int, str]] = []
        self._places, self.columns = array("q"), Columns()
        for group, start in enumerate(self._starts):
            for place, row in enumerate(table_rows(self._group(group)), start):
                if isinstance(row, str):
                    self.bad.append((place + 1, row))
                else:
                    self.columns.see(known(row))
                    self._places.append(place)

    def rows(self) -> Rows:
        """Returns the rows that Python can hold, numbered from 1 among all."""
        return with_columns(Lazy(self._places, self._row), self.columns)

    def _row(self, place: int) -> tuple[int, Row]:
        group = bisect.bisect_right(self._starts, place) - 1
        found = self._group(group).slice(place - self._starts[group], 1).to_pylist()[0]
        return place + 1, {column: without_nulls(value) for column, value in known(found).items()}

    def _group(self, group: int) -> Any:
        if self._held[0] != group:
            with guarded(f"{self.path} is not a readable Parquet file"):
                self._held = group, self._file.read_row_group(group)
        return self._held[1]
