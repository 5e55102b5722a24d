"""Rows with labels that cannot be told apart by them, said before training."""

from __future__ import annotations

from typing import Any

from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError

ALONE = "every row to train on has the same label ({}), of {} in all: the model learns to say it whatever it reads"


def check_classes(examples: Examples, shared: bool = False) -> dict[str, str]:
    """Returns what the user should hear of labels that are all the same; raises where there is no other class at all,
    for then the loss is 0 from the start, unless the classes are `shared` with rows that are read elsewhere.

    Of a text that may have several classes, one alone is yes or no: its loss is not 0, and it is only told.
    """
    if examples.labels is None:
        return {}
    found = {each for row in examples.rows for each in _labels(row)}
    if len(found) != 1:
        return {}
    label = next(iter(found))
    several = examples.rows[0].labels is not None and examples.rows[0].tokens is None
    if shared and len(examples.labels) == 1:
        return {}
    if len(examples.labels) > 1 or several:
        return {ALONE.format(label, len(examples.labels)): f"{len(examples):,} rows"}
    raise LuthierError(
        f"all {len(examples):,} rows of {examples.source} have the label {label!r}, the only class: there is nothing "
        "to tell apart, and the loss would be 0 from the start; give rows of another class too."
    )


def _labels(row: Example) -> tuple[Any, ...]:
    """What a row says of the classes: its own, each word's, or the set of those that it has."""
    if row.labels is None:
        return () if row.label is None else (row.label,)
    return row.labels if row.tokens is not None else (", ".join(map(str, sorted(row.labels))),)
