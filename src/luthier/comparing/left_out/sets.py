"""Sets of yes/no questions by group, and the guard against what one group tells of another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier import data
from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.evaluating.yes_no import check_questions, description

COLUMNS = ("task", "group", "from")
"""Columns that `luthier rewrite --by yes_no` writes beside the rows."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one data set."""

    source: str
    group: str
    rows: Examples


def read_sets(sources: Sequence[str], named: str | None = None) -> list[QuestionSet]:
    """Reads sets of questions.

    Raises `LuthierError` for rows without a group, for sets of different kinds, for fewer than two groups, and where a
    group that is left out would be known from another: by a data set, a text or a description that both have.
    """
    sets = [_read(source, named) for source in sources]
    tasks = sorted({each.rows.task for each in sets})
    if len(tasks) > 1:
        raise LuthierError(
            f"some sets are for {tasks[0]} and some for {tasks[1]}; make all of one kind (yes_no, --gives)."
        )
    if len({each.group for each in sets}) < 2:
        raise LuthierError(
            f"all sets are of the group {sets[0].group!r}; none is left to train on. Give several groups."
        )
    for one, other in itertools.combinations(sets, 2):
        if one.group != other.group:
            refuse_leak(one, other)
    return sets


def _read(source: str, named: str | None) -> QuestionSet:
    rows = data.load(source, columns=COLUMNS, named=named)
    check_questions(rows)
    groups = {str(row.meta["group"]) if row.meta.get("group") else "" for row in rows.rows}
    if len(groups) > 1 or "" in groups:
        found = ", ".join(sorted(map(repr, groups)))
        raise LuthierError(
            f"{source} has rows of the groups {found}; expected one group, in the column 'group' of every row, as "
            "`luthier rewrite --by yes_no` writes it."
        )
    return QuestionSet(source, groups.pop(), rows)


def refuse_leak(one: QuestionSet, other: QuestionSet) -> None:
    """Raises where two sets of different groups have a data set, a text or a description in common."""
    for what, of in READ.items():
        left, right = ({value for row in each.rows.rows if (value := of(row))} for each in (one, other))
        if shared := left & right:
            raise LuthierError(
                f"{len(shared):,} {what} of {one.source} (group {one.group}) {'is' if len(shared) == 1 else 'are'} in "
                f"{other.source} (group {other.group}) too, such as {min(shared)[:60]!r}: the group that is left out "
                "would be trained on. Put both into one group, or remove what they share."
            )


def _source(row: Example) -> str:
    told: Any = row.meta.get("from")
    return str(told["source"]) if isinstance(told, dict) and "source" in told else ""


def _text(row: Example) -> str:
    """What is asked about, less the question, as two typists would agree on it."""
    turns = row.messages or []
    said = str(turns[-2].get("content") if len(turns) > 1 else row.text or "")
    return " ".join(said.removeprefix(description(row)).casefold().split())


READ: dict[str, Callable[[Example], str]] = {
    "data sets": _source,
    "texts": _text,
    "descriptions": lambda row: " ".join(description(row).casefold().split()),
}
"""What two groups may not have in common, and where it stands."""
