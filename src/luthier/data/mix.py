"""`mix:boolq=a.jsonl,arc=b.jsonl`: several sources, one after the other, whose rows bear the names of their tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

from luthier.core.errors import LuthierError
from luthier.core.lazy import chained, mapped
from luthier.data.table import Row, Table, with_class_names


def read_mix(source: str, read: Callable[[str], Table]) -> Table:
    """Returns the rows of all sources, each with its name in the column `task` unless the row says another.

    `read` gives the rows of one of them. All must be of one layout. Commas part the sources, so none may have one in
    its path.
    """
    rows: list[Sequence[tuple[int, Row]]] = []
    bad: list[tuple[int, str]] = []
    starts: list[tuple[int, str]] = []
    left: list[str] = []
    before = 0
    for name, each in _named(source):
        table = read(each)
        if table.folder is not None and any({"image", "audio"} & set(row) for _, row in table.rows[:1]):
            raise LuthierError(f"{each} holds pictures or sounds, whose paths a mix would lose; read it alone.")
        starts += [(before + number, f"{name}/{file}") for number, file in table.starts] or [(before, name)]
        rows.append(mapped(table.rows, partial(_of_task, name, table, before)))
        left += [f"{name}/{file}" for file in table.left]
        bad += [(before + number, reason) for number, reason in table.bad]
        before += max((number for number, _ in chain(table.rows, table.bad)), default=0)
    return Table(chained(rows), bad, starts=starts, left=tuple(left))


def _of_task(name: str, table: Table, before: int, numbered: tuple[int, Row]) -> tuple[int, Row]:
    number, row = numbered
    return before + number, {"task": name, **with_class_names(row, table)}


def _named(source: str) -> list[tuple[str, str]]:
    found = [each.partition("=") for each in source.removeprefix("mix:").split(",")]
    named = [(name.strip(), path.strip()) for name, _, path in found]
    if not all(name and path for name, path in named):
        raise LuthierError(
            f"{source!r} is not a mix; write mix:name=source,name=source, as mix:boolq=a.jsonl,arc=b.jsonl."
        )
    return named
