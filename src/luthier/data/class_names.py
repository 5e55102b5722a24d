"""Labels of rows as the names of classes, in their order, or as numbers to regress on."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from luthier.core.checks import shown
from luthier.core.contracts.example import Example
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.lazy import Lazy, kept, mapped
from luthier.data.bad import BadRow
from luthier.data.layout import LAYOUTS
from luthier.data.score import kinds
from luthier.data.table import WHOLE, index_of

Bad = list[tuple[int, str]]
T = TypeVar("T")


def examples_of(
    rows: Sequence[T],
    make: Callable[[T], Example],
    number: Callable[[T], int],
    see: Callable[[Example], Any] = id,
) -> tuple[Sequence[Example], Bad]:
    """Returns (what `make` makes of the rows, those that it cannot use); of a large file, it is made when asked for.

    `see` is shown every example once.
    """
    good, places, bad = [], array("q"), []
    for place, row in enumerate(rows):
        try:
            with guarded("it cannot be read as a row", BadRow):
                found = make(row)
        except BadRow as reason:
            bad.append((number(row), str(reason)))
        else:
            see(found)
            places.append(place)
            good += [] if isinstance(rows, Lazy) else [found]
    return mapped(kept(rows, places), make) if isinstance(rows, Lazy) else good, bad


def named_labels(
    rows: Sequence[Example], task: str, given: bool, classes: list[str] | None
) -> tuple[Sequence[Example], list[str] | None, str, Bad]:
    """Returns labels made class names or numbers, with the classes in order and the task that they tell."""
    if "labels" in kinds(rows):
        return _several(rows, task, classes)
    if "label" not in kinds(rows):
        return rows, None, task, []
    if not given and "regression" in _tasks_with(task) and _numbers([e.label for e in rows]):
        task = "regression"
    whole = all(value is not None and value.is_integer() for value in (_finite(e.label) for e in rows))
    convert: Callable[[Any], str | float] = _number if task == "regression" else _class_name(classes, whole)

    def labelled(example: Example) -> Example:
        try:
            return dataclasses.replace(example, label=convert(example.label))
        except (ValueError, IndexError, OverflowError):
            raise BadRow(f"label {shown(example.label)} does not fit {task}") from None

    good, bad = examples_of(rows, labelled, lambda example: example.row)
    if task == "regression":
        return good, None, task, bad
    names = {str(e.label) for e in good}
    if names & {"true", "false"} and names & {"0", "1"} and names <= {"true", "false", "0", "1"}:
        raise LuthierError(f"the labels are {', '.join(sorted(names))}: truth values in two forms; write them in one.")
    return good, classes or _ordered(names), task, bad


def refuse_joined(source: str, names: Sequence[str]) -> None:
    """Raises where `labels` are texts of several classes each, as `joy, anger` beside `joy`."""
    for mark in (",", ";", "|"):
        joined = [name for name in names if mark in name]
        parts = [part.strip() for name in joined for part in name.split(mark)]
        if any(part in names or parts.count(part) > 1 for part in parts):
            raise LuthierError(
                f"{source}: 'labels' holds {joined[0]!r}, which reads as several classes in one text; write a list, or "
                "say that each text is one class (--columns label=labels)."
            )


def _several(
    rows: Sequence[Example], task: str, classes: list[str] | None
) -> tuple[Sequence[Example], list[str] | None, str, Bad]:
    """Lists of labels made class names, with all classes in order."""
    name = _class_name(classes, False)

    def labelled(example: Example) -> Example:
        try:
            return dataclasses.replace(example, labels=tuple(map(name, example.labels or ())))
        except (ValueError, IndexError):
            raise BadRow(f"the labels {shown(example.labels)} do not fit {task}") from None

    good, bad = examples_of(rows, labelled, lambda example: example.row)
    names = {each for e in good for each in e.labels or ()}
    if task == "multi-label" and names == {"0", "1"} and {e.labels for e in good} == {("0", "1"), ("1", "0")}:
        raise LuthierError(
            "every row's labels are 0 and 1, in different orders: they seem to be a 0 or 1 for each class; expected "
            "the classes that a text has, by name or number."
        )
    return good, classes or _ordered(names), task, bad


def _tasks_with(task: str) -> set[str]:
    return {t for layout in LAYOUTS.values() if task in layout.tasks for t in layout.tasks}


def _numbers(labels: list[Any]) -> bool:
    """Whether labels are measurements: half of them are numbers, one of which has a fraction, or which are written with
    a decimal point and are too many different ones for classes."""
    numbers = [(label, value) for label in labels if (value := _finite(label)) is not None]
    if 2 * len(numbers) < len(labels):
        return False
    pointed = any(isinstance(label, float) or "." in str(label) for label, _ in numbers)
    many = len({value for _, value in numbers}) > CLASSES
    return any(not value.is_integer() for _, value in numbers) or (pointed and many)


CLASSES = 20
"""More different whole numbers than these, written as 3.0, are no classes."""


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


def _class_name(classes: list[str] | None, whole: bool) -> Callable[[Any], str]:
    """How a label is named; where all are `whole` numbers, 1.0 in a CSV file is the 1 that it is elsewhere."""

    def name(label: Any) -> str:
        if whole and isinstance(label, str) and "." in label:
            label = float(label)
        if isinstance(label, float):
            if not label.is_integer():
                raise ValueError(label)
            label = int(label)
        label = index_of(label, classes or ())
        if classes is not None and isinstance(label, int):
            if label < 0:  # the hub's mark of a row without a label
                raise ValueError(label)
            return classes[label]
        return str(label)

    return name


def _ordered(names: set[str]) -> list[str]:
    """Class names by number when all are whole numbers, else alphabetically."""
    if all(WHOLE.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
