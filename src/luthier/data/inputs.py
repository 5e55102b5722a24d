"""Rows to predict on: what is read of them, and the rows as they came."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.contracts.example import Example, Examples, fingerprint, last_answer
from luthier.core.errors import LuthierError
from luthier.core.lazy import kept, mapped
from luthier.data.bad import refuse
from luthier.data.columns import mapping
from luthier.data.layout import LAYOUTS, Layout, recognise, unanswered
from luthier.data.load import check_task, named_columns, parsed
from luthier.data.sources import read
from luthier.data.split_column import divides
from luthier.data.table import Row, Table, bare, columns_of

WRITTEN = ("causal-lm", "seq2seq")


@dataclass(frozen=True)
class Inputs:
    """Rows without their answers."""

    examples: Examples
    """What the model is to answer: conversations end before their last answer, and labels are the first class."""
    rows: Sequence[Row]
    """The row of each example, as its source has it."""


def load_inputs(
    source: str | Path,
    *,
    task: str,
    labels: list[str] | None = None,
    named: Any = None,
    split: str | None = None,
    skip_bad_rows: bool = False,
) -> Inputs:
    """Returns the rows of `source` in any layout of `load` that serves `task`, with or without their answers.

    Of a folder the rows of `split` are read (None: test), of a file with a column `split` those of one that is given.
    Answers that are there are not read. `labels` are the classes of the model, of which examples bear the first, so
    that they can be encoded. A row of plain `text` is one to go on with, to classify, or to embed. Raises as `load`
    does.
    """
    source = str(source)
    check_task(task)
    whole = read(source, split or "test", divided=divides(split, *mapping(named).values()))
    table, names, _ = named_columns(whole, _meant(task, mapping(named)), (), source)
    if not table.rows and not table.bad:
        raise LuthierError(f"{source} is empty: no row to predict.")
    if not table.rows:
        raise refuse(source, table.bad, len(table.bad), table.place)
    if task == "embedding":
        table = _anchored(table)
    name = recognise(bare(table), source, task, names, to_answer=True)
    layout = LAYOUTS[name]
    asked = mapped(table.rows, lambda numbered: (numbered[0], _asked(numbered[1], layout)))
    rows, bad = parsed(dataclasses.replace(table, rows=asked), layout, ("task",))
    bad = sorted(table.bad + bad)
    if bad and not (skip_bad_rows and rows):
        raise refuse(source, bad, len(table.rows) + len(table.bad), table.place)
    found = mapped(rows, lambda example: blank(example, task, labels))
    examples = Examples(found, name, source, bad, fingerprint(found), None, labels, task)
    return Inputs(examples, _as_they_came(whole, found))


def _meant(task: str, named: dict[str, str]) -> dict[str, str]:
    """For a model that embeds, `text` is the text: the name under which layouts know it is another."""
    return {"anchor" if task == "embedding" and name == "text" else name: column for name, column in named.items()}


def _anchored(table: Table) -> Table:
    def anchored(numbered: tuple[int, Row]) -> tuple[int, Row]:
        number, row = numbered
        return number, row if row.get("anchor") is not None else {**row, "anchor": row.get("text")}

    return dataclasses.replace(table, rows=mapped(table.rows, anchored))


def _asked(row: Row, layout: Layout) -> Row:
    """The row without its answer, where that is a column of its own."""
    if layout.answer and not layout.turns:
        row = {**row, layout.answer: None}
    return unanswered(row, layout)


def blank(example: Example, task: str, labels: list[str] | None) -> Example:
    """Returns an example that says nothing of its answer."""
    if example.messages is not None and task in WRITTEN:
        return dataclasses.replace(example, messages=example.messages[: last_answer(example.messages)], answer=None)
    if task == "speech-to-text":
        return dataclasses.replace(example, answer=None)
    first = (labels or [""])[0]
    if example.tokens is not None:
        return dataclasses.replace(example, labels=(first,) * len(example.tokens))
    if example.texts is not None:
        return dataclasses.replace(example, texts=example.texts[:1])
    if example.label is not None:
        return dataclasses.replace(example, label=0.0 if labels is None else first)
    return example


def _as_they_came(table: Table, examples: Sequence[Example]) -> Sequence[Row]:
    """The rows under the names of their source."""
    places = {number: place for place, (number, _) in enumerate(table.rows)}
    return mapped(kept(table.rows, (places[example.row] for example in examples)), columns_of)
