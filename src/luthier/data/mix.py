"""`mix:boolq=a.jsonl,arc=b.jsonl`: several sources, one after the other, whose rows bear the names of their tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain

from luthier.core.errors import LuthierError
from luthier.core.lazy import chained, mapped
from luthier.data.apart import apart
from luthier.data.speech import columns_of
from luthier.data.table import Row, Table, present


def read_mix(source: str, read: Callable[[str], Table]) -> Table:
    """Returns the rows of all sources, each with its name in the column `task` unless the row says another.

    `read` gives the rows of one of them. All must be of one layout. Commas part the sources, so none may have one in
    its path.
    """
    rows: list[Sequence[tuple[int, Row]]] = []
    bad: list[tuple[int, str]] = []
    starts: list[tuple[int, str]] = []
    left: list[str] = []
    beside: list[str] = []
    before = 0
    for name, each in _named(source):
        table = read(each)
        named = columns_of(table, set(present(table.rows)))
        starts += [(before + number, f"{name}/{file}") for number, file in table.starts] or [(before, name)]
        rows.append(mapped(table.rows, partial(_of_task, name, table, named, before)))
        left += [f"{name}/{file}" for file in table.left]
        beside += [f"{name}/{key}" for key in table.beside]
        bad += [(before + number, reason) for number, reason in table.bad]
        before += max((number for number, _ in chain(table.rows, table.bad)), default=0)
    return Table(chained(rows), bad, starts=starts, left=tuple(left), beside=tuple(beside))


def _of_task(
    name: str, table: Table, named: Mapping[str, str], before: int, numbered: tuple[int, Row]
) -> tuple[int, Row]:
    number, row = numbered
    return before + number, {"task": name, **apart(row, table, named)}


def _named(source: str) -> list[tuple[str, str]]:
    found = [each.partition("=") for each in source.removeprefix("mix:").split(",")]
    named = [(name.strip(), path.strip()) for name, _, path in found]
    if not all(name and path for name, path in named):
        raise LuthierError(
            f"{source!r} is not a mix; write mix:name=source,name=source, as mix:boolq=a.jsonl,arc=b.jsonl."
        )
    return named
