"""Labelling by hand: a pool, a file of labels that grows, and a selection that says which row is next."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.contracts.selection import Pool, Selection
from luthier.core.errors import LuthierError
from luthier.core.guard import written
from luthier.core.records import append_text, read_text
from luthier.data.texts import full_text

LONGEST = 200
"""Characters of a label."""


@dataclass
class Annotation:
    """Rows that are labelled one at a time, up to a budget; every label is on disk before the next is asked for."""

    pool: Pool
    selection: Selection
    budget: int
    """Labels in all, those in the file included."""
    out: Path
    """JSON lines of `{"row", "text", "label"}`; one that is there is gone on with."""
    classes: tuple[str, ...] = ()
    """The labels that there may be; empty: any."""
    known: dict[int, str] = field(default_factory=dict)
    """Labels by place in the pool."""
    skipped: set[int] = field(default_factory=set)
    """Places that were passed over; they are not asked for again in this sitting."""

    def __post_init__(self) -> None:
        if not 1 <= self.budget <= len(self.pool.examples):
            raise LuthierError(
                f"cannot label {self.budget:,} of the {len(self.pool.examples):,} rows of {self.pool.examples.source}."
            )
        places = {row.row: i for i, row in enumerate(self.pool.examples.rows)}
        for number, line in enumerate(self._lines(), 1):
            self._read(number, line, places)

    def _lines(self) -> list[str]:
        return read_text(self.out).splitlines() if self.out.exists() else []

    def _read(self, number: int, line: str, places: dict[int, int]) -> None:
        try:
            found = json.loads(line)
            row, text, label = found["row"], found["text"], found["label"]
        except Exception:  # whatever stands there instead: no JSON, nested too deep, other keys
            raise LuthierError(
                f"{self.out}, line {number}, is not the label of a row (row, text, label); choose another file (out)."
            ) from None
        if row not in places or self.text(places[row]) != text:
            raise LuthierError(
                f"{self.out}, line {number}, labels row {row} of other data than {self.pool.examples.source}; choose "
                "another file (out)."
            )
        self.known[places[row]] = str(label)

    @property
    def left(self) -> int:
        """Labels that are still to be given."""
        rows = len(self.pool.examples) - len(self.skipped)
        return max(0, min(self.budget, rows) - len(self.known))

    def text(self, place: int) -> str:
        """Returns what a row says."""
        return full_text(self.pool.examples.rows[place])

    def next(self) -> int | None:
        """Returns the place of the row to label next; None when the budget is spent.

        Rows that were skipped are chosen among no more: the selection is asked as though they were not in the pool.
        """
        if not self.left:
            return None
        if not self.skipped:
            return self._asked(self.selection.query(self.pool, self.known, self.left))
        kept = [i for i in range(len(self.pool.examples)) if i not in self.skipped]
        part = Pool(
            self.pool.examples.keep([self.pool.examples.rows[i] for i in kept]),
            self.pool.target, self.pool.seed, self.pool.states, self.pool.model,
        )  # fmt: skip
        known = {new: self.known[old] for new, old in enumerate(kept) if old in self.known}
        return self._asked(kept[self.selection.query(part, known, self.left)])

    def _asked(self, place: int) -> int:
        if place in self.known or not 0 <= place < len(self.pool.examples):
            raise LuthierError(f"{self.selection.name()} asks for a row that has a label, or is none ({place}).")
        return place

    def label(self, place: int, label: str) -> None:
        """Keeps the label of a row, in the file first; raises for one that is none of the classes."""
        label = " ".join(label.split())
        if not label or len(label) > LONGEST:
            raise LuthierError(f"a label has 1 to {LONGEST} characters; this one has {len(label)}.")
        if self.classes and label not in self.classes:
            raise LuthierError(f"{label!r} is none of the classes: {', '.join(self.classes)}.")
        if place in self.known:
            raise LuthierError(f"row {self.pool.examples.rows[place].row} has a label already.")
        row = {"row": self.pool.examples.rows[place].row, "text": self.text(place), "label": label}
        with written(str(self.out)):
            append_text(self.out, json.dumps(row, ensure_ascii=False) + "\n", sync=True)
        self.known[place] = label

    def skip(self, place: int) -> None:
        """Passes a row over."""
        self.skipped.add(place)

    def told(self) -> dict[str, Any]:
        """Returns what has been done: labels by class, how many are left."""
        return {"labelled": len(self.known), "left": self.left, "classes": dict(Counter(self.known.values()))}
