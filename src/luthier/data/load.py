"""`load`: a source, its layout, and every bad row told before any work."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.core.contracts.example import Example, Examples, fingerprint
from luthier.core.errors import LuthierError, near
from luthier.data.bad import BadRow, refuse
from luthier.data.layout import LAYOUTS, recognise
from luthier.data.read import Table, read
from luthier.data.score import scorer_for

Bad = list[tuple[int, str]]


def load(
    source: str | Path,
    *,
    skip_bad_rows: bool = False,
    limit: int | None = None,
    seed: int = 0,
    split: str = "train",
    task: str | None = None,
    columns: Sequence[str] = (),
) -> Examples:
    """The examples of `source` (see `read` for what a source can be), in the layout that its
    columns tell.

    `limit` draws that many rows by `seed` and keeps their order; all rows are still checked and
    all classes known. `task` (a key of `TASKS`) is the layout's own unless given. `columns` are
    kept in `Example.meta` where a row has them, whatever the layout reads. Raises one
    `LuthierError` that lists the bad rows with their reasons, unless `skip_bad_rows`, which drops
    them and records them in `.skipped`; raises on an empty source, or columns that fit no layout.
    """
    source = str(source)
    check_task(task)
    if limit is not None and limit < 1:
        raise LuthierError(f"limit is {limit}; expected at least 1.")
    table = read(source, split, limit, seed)
    total = len(table.rows) + len(table.bad)
    if not total:
        raise LuthierError(f"{source} is empty: no row to learn from.")
    if not table.rows:
        raise refuse(source, table.bad, total, table.place)
    layout = recognise((row for _, row in table.rows), source, task)
    rows, bad = _parse(table, layout, ("entry", *columns))
    rows, labels, task, wrong = _label(rows, task or LAYOUTS[layout].tasks[0], task is not None, table.classes)
    bad = sorted(table.bad + bad + wrong)
    if bad and not (skip_bad_rows and rows):
        raise refuse(source, bad, total, table.place)
    if limit is not None and limit < len(rows):
        chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))
        rows = [rows[i] for i in chosen]
    examples = Examples(rows, layout, source, bad, fingerprint(rows), None, labels, task)
    return dataclasses.replace(examples, scorer=scorer_for(examples))


def check_task(task: str | None) -> None:
    """Raises on an unknown task."""
    known = sorted({t for layout in LAYOUTS.values() for t in layout.tasks})
    if task is not None and task not in known:
        raise LuthierError(f"no task {task!r}{near(task, known)} There are: {', '.join(known)}.")


def _parse(table: Table, layout: str, columns: Sequence[str]) -> tuple[list[Example], Bad]:
    rows: list[Example] = []
    bad: Bad = []
    parse = LAYOUTS[layout].parse
    for number, row in table.rows:
        try:
            fields = parse(row, table.folder)
        except BadRow as reason:
            bad.append((number, str(reason)))
        else:
            kept = {column: row[column] for column in columns if row.get(column) is not None}
            rows.append(Example(row=number, **fields, meta=kept))
    return rows, bad


def _label(
    rows: list[Example], task: str, given: bool, classes: list[str] | None
) -> tuple[list[Example], list[str] | None, str, Bad]:
    """Labels made class names or numbers, with the classes in order and the task that they tell."""
    if not any(example.label is not None for example in rows):
        return rows, None, task, []
    if not given and "regression" in _tasks_with(task) and _numbers([e.label for e in rows]):
        task = "regression"
    convert: Callable[[Any], str | float] = _number if task == "regression" else _class_name(classes)
    good: list[Example] = []
    bad: Bad = []
    for example in rows:
        try:
            good.append(dataclasses.replace(example, label=convert(example.label)))
        except (ValueError, IndexError):
            bad.append((example.row, f"label {example.label!r} does not fit {task}"))
    if task == "regression":
        return good, None, task, bad
    return good, classes or _ordered({str(e.label) for e in good}), task, bad


def _tasks_with(task: str) -> set[str]:
    return {t for layout in LAYOUTS.values() if task in layout.tasks for t in layout.tasks}


def _numbers(labels: list[Any]) -> bool:
    """Whether labels are measurements: half of them are numbers, and one is a float or has a
    fraction."""
    numbers = [(label, value) for label in labels if (value := _finite(label)) is not None]
    measured = any(isinstance(label, float) or not value.is_integer() for label, value in numbers)
    return measured and 2 * len(numbers) >= len(labels)


def _finite(label: Any) -> float | None:
    try:
        value = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _number(label: Any) -> float:
    value = _finite(label)
    if value is None:
        raise ValueError(label)
    return value


def _class_name(classes: list[str] | None) -> Callable[[Any], str]:
    def name(label: Any) -> str:
        if isinstance(label, float):
            if not label.is_integer():
                raise ValueError(label)
            label = int(label)
        if classes is not None and isinstance(label, int):
            if label < 0:  # the hub's mark of a row without a label
                raise ValueError(label)
            return classes[label]
        return str(label)

    return name


def _ordered(names: set[str]) -> list[str]:
    """Class names by number when all are whole numbers, else alphabetically."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)
