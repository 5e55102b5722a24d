"""Labels that tell rows apart badly or not at all, said before training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.data.told import HOLLOW

ALONE = "every row to train on has the same label ({}), of {} in all: the model learns to say it whatever it reads"
SAME = "every row to train on has the same {} ({}): the model learns to say it whatever it reads"
EVERYWHERE = "every row to train on has the class {!r}: the model learns to say it whatever it reads"
WRITTEN = "classes that differ in writing alone are different ones ({})"
MISSING = "classes are named as files write missing values ({}), and are learned as classes"


def check_classes(examples: Examples, shared: bool = False) -> dict[str, str]:
    """Returns what the user should hear of the labels to train on; raises where they all are the only class there is,
    for then the loss is 0 from the start, unless the classes are `shared` with rows that are read elsewhere.

    Of a text that may have several classes, one alone is yes or no: its loss is not 0, and it is only told.
    """
    if examples.labels is None:
        return _constant(examples.rows)
    return _alone(examples, shared) | _named(examples.labels)


def _alone(examples: Examples, shared: bool) -> dict[str, str]:
    labels, rows = examples.labels or [], f"{len(examples):,} rows"
    if not labels:
        raise LuthierError(f"no row of {examples.source} has a class: there is nothing to tell apart.")
    found = {each for row in examples.rows for each in _labels(row)}
    if len(found) != 1:
        return {EVERYWHERE.format(name): rows for name in _everywhere(examples.rows)}
    label = next(iter(found))
    several = examples.rows[0].labels is not None and examples.rows[0].tokens is None
    if shared and len(labels) == 1:
        return {}
    if len(labels) > 1 or several:
        return {ALONE.format(label, len(labels)): rows}
    raise LuthierError(
        f"all {len(examples):,} rows of {examples.source} have the label {label!r}, the only class: there is nothing "
        "to tell apart, and the loss would be 0 from the start; give rows of another class too."
    )


def _labels(row: Example) -> tuple[Any, ...]:
    """What a row says of the classes: its own, each word's, or the set of those that it has."""
    if row.labels is None:
        return () if row.label is None else (row.label,)
    return row.labels if row.tokens is not None else (", ".join(map(str, sorted(row.labels))),)


def _everywhere(rows: Iterable[Example]) -> list[str]:
    """The classes that every text has, of texts that may have several."""
    found: set[str] | None = None
    for row in rows:
        if row.labels is None or row.tokens is not None:
            return []
        found = set(row.labels) if found is None else found & set(row.labels)
        if not found:
            return []
    return sorted(found or ())


def _constant(rows: Sequence[Example]) -> dict[str, str]:
    """Notes on what rows without classes are told apart by, where all of them say the same."""
    found: dict[str, Any] | None = None
    for row in rows:
        here = _target(row)
        found = here if found is None else {what: value for what, value in found.items() if here.get(what) == value}
        if not found:
            return {}
    return {SAME.format(what, value): f"{len(rows):,} rows" for what, value in (found or {}).items()}


def _target(row: Example) -> dict[str, Any]:
    """{what is learned of a row: its value}: a number, a judgement, a text, that there is no answer."""
    found = {
        "number": row.label,
        "judgement of its answer": row.wanted,
        "positive text": row.texts[1] if row.texts and len(row.texts) > 1 else None,
        "answer": "none in its context" if row.spans == () else None,
    }
    return {what: value for what, value in found.items() if value is not None}


def _named(names: list[str]) -> dict[str, str]:
    """Notes on classes whose names may not be meant."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_plain(name), []).append(name)
    twice = [same for same in alike.values() if len(same) > 1]
    hollow = [name for name in names if name.strip().lower() in HOLLOW]
    told = {WRITTEN.format(" and ".join(map(repr, twice[0]))): sum(map(len, twice))} if twice else {}
    told |= {MISSING.format(", ".join(map(repr, hollow))): len(hollow)} if hollow else {}
    return {note: f"{count:,} of {len(names):,} classes" for note, count in told.items()}


def _plain(name: str) -> str:
    """A name without what a second typing may change: case, white space, how a number is written."""
    words = " ".join(name.split()).casefold()
    try:
        value = float(words)
    except ValueError:
        return words
    return str(value) if math.isfinite(value) else words
