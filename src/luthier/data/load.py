"""`load`: a source, its layout, and every bad row told before any work."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.example import Example, Examples, Hashed, fingerprint, last_answer
from luthier.core.errors import LuthierError, near
from luthier.core.lazy import Lazy, kept, mapped, noting
from luthier.data.around import check_flags, pictured
from luthier.data.bad import refuse
from luthier.data.class_names import Bad, examples_of, named_labels, refuse_joined
from luthier.data.columns import mapping, renamed, unread
from luthier.data.gym import OFFSETS
from luthier.data.layout import LAYOUTS, Layout, columns_in, known_columns, recognise, reference_of, unanswered
from luthier.data.preference import PAIRS, PREFERENCES, kind_of, preference_layout
from luthier.data.score import note_kind, scorer_for
from luthier.data.sources import read
from luthier.data.speech import columns_of
from luthier.data.split_column import divides
from luthier.data.table import Row, Table, bare, present, with_class_names
from luthier.data.turns import ROW_FLAGS, decoded
from luthier.data.wanted import JUDGED, answered

if TYPE_CHECKING:
    from luthier.core.contracts.example import Examples

ALL = {**LAYOUTS, **PREFERENCES}
LABELS = {"text-labels": "labels", "tokens-tags": "tags"}
"""The column of the labels, of layouts whose rows have several."""


def load(
    source: str | Path,
    *,
    skip_bad_rows: bool = False,
    limit: int | None = None,
    seed: int = 0,
    split: str | None = None,
    task: str | None = None,
    columns: Sequence[str] = (),
    named: str | Mapping[str, str] | None = None,
    preferences: bool = False,
    prompts: bool = False,
) -> Examples:
    """Returns the rows of a source (a file, a folder, a hub id, `gym:<task>`), in the layout that its columns tell.

    `limit` draws that many rows by `seed` and keeps their order; all rows are still checked and
    all classes known. `task` (a key of `TASKS`) is the layout's own unless given. `columns` are
    kept in `Example.meta` where a row has them, whatever the layout reads. `named` says which
    columns are meant where the source calls them otherwise: `text=body,label=category`. What
    nothing reads is listed in `.unread`. Rows that tell good answers from bad ones are read where the caller
    tells them apart (`preferences`): `Example.rejected` or `Example.wanted` then says what is not to be given.
    Of a file whose column `split` names several, the rows of a `split` that is given are read, unless that column is
    one of `columns` or meant by `named`; of none, all are (and of a folder those of train).
    With `prompts`, rows may lack the answer: it is then `TO_COME`, and the reference `Example.answer` is that of a
    column `answer`, or None.

    Raises one `LuthierError` that lists the bad rows with their reasons, unless `skip_bad_rows`,
    which drops them and records them in `.skipped`; raises on an empty source, columns that fit no
    layout, and rows that hold answers which are not wanted (preferences).
    """
    source = str(source)
    check_task(task)
    if limit is not None and limit < 1:
        raise LuthierError(f"limit is {limit}; expected at least 1.")
    divided = divides(split, *columns, *mapping(named).values())
    table, names, gone = named_columns(read(source, split, limit, seed, divided), mapping(named), columns, source)
    total = len(table.rows) + len(table.bad)
    if not total:
        raise LuthierError(f"{source} is empty: no row to learn from.")
    if not table.rows:
        raise refuse(source, table.bad, total, table.place)
    table = _with_names(table)
    told = bare(table)
    name = (preference_layout(told) if preferences else None) or recognise(
        told, source, task or ("causal-lm" if prompts else None), names, to_answer=prompts
    )
    layout = ALL[name]
    if task is not None and task not in layout.tasks:
        raise LuthierError(f"{source} has {name} rows, which serve {' or '.join(layout.tasks)} and not {task}.")
    rows, bad = parsed(table, layout, ("entry", *columns), prompts)
    held = LABELS.get(name, "label")
    classes = table.classes.get(names.get(held, held))
    rows, labels, task, wrong = named_labels(rows, task or layout.tasks[0], task is not None, classes)
    if names.get("label") == "labels" and "label" not in mapping(named):
        refuse_joined(source, labels or [])
    bad = sorted(table.bad + bad + wrong)
    if bad and not (skip_bad_rows and rows):
        raise refuse(source, bad, total, table.place)
    if limit is not None and limit < len(rows):
        rows = kept(rows, sorted(random.Random(seed).sample(range(len(rows)), limit)))
    beside = ("entry", *columns, *(("task",) if source.startswith("mix:") else ()), *(("answer",) if prompts else ()))
    unread = (*gone, *(names.get(each, each) for each in _unread(table, layout, beside)))
    examples = Examples(rows, name, source, bad, fingerprint(rows), None, labels, task, unread)
    return dataclasses.replace(examples, scorer=scorer_for(examples))


def kind_of_rows(source: str | Path, named: str | Mapping[str, str] | None = None) -> str:
    """Returns what rows hold: `answers`, `pairs` of a chosen and a rejected one, answers that are `judged`, or
    `texts` that belong near each other.

    An empty source, or one that cannot be read as rows, has `answers` here; `load` says what is wrong with it.
    """
    source = str(source)
    if source.startswith("gym:"):
        return "answers"
    meant = mapping(named)
    try:
        table, _, _ = named_columns(read(source), meant, tuple(meant), source)
    except LuthierError:
        return "answers"
    told = bare(_with_names(table))
    found = preference_layout(told)
    if found is None and columns_in(told).issuperset(LAYOUTS["anchor-positive"].needs):
        found = "anchor-positive"
    return kind_of(found) if found else "answers"


def load_prompts(
    source: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    named: str | Mapping[str, str] | None = None,
    split: str = "train",
    task: str = "causal-lm",
    unread: Callable[[Sequence[str]], Any] | None = None,
) -> list[Example]:
    """What there is to answer in `source`: its rows up to their last answer, or all of those that have none yet.

    The layouts are those of `load` that serve the task, which is to answer prompts or to write down sounds; a row of
    plain `text` is one to go on with. `limit` draws that many rows by `seed`, as `load` does. `unread` is shown the
    columns that nothing reads. Raises as `load` does.
    """
    source = str(source)
    if limit is not None and limit < 1:
        raise LuthierError(f"limit is {limit}; expected at least 1.")
    table, names, gone = named_columns(read(source, split, limit, seed), mapping(named), (), source)
    if not table.rows and not table.bad:
        raise LuthierError(f"{source} is empty: no row to answer.")
    if not table.rows:
        raise refuse(source, table.bad, len(table.bad), table.place)
    layout = _asking(table, source, task, names)
    asked = mapped(table.rows, lambda numbered: (numbered[0], unanswered(numbered[1], layout)))
    rows, bad = parsed(dataclasses.replace(table, rows=asked), layout, ())
    if bad or table.bad:
        raise refuse(source, sorted(table.bad + bad), len(table.rows) + len(table.bad), table.place)
    if limit is not None and limit < len(rows):
        rows = kept(rows, sorted(random.Random(seed).sample(range(len(rows)), limit)))
    left = _unread(table, layout, (layout.answer, *SAID, *JUDGED))
    if unread is not None:
        unread([*gone, *(names.get(each, each) for each in left if "[]" not in each)])
    return [
        row if row.messages is None else dataclasses.replace(row, messages=row.messages[: last_answer(row.messages)])
        for row in rows
    ]


SAID = ("answer", "chosen", "rejected", "entry", "task")
"""Columns beside a prompt that say what is answered, or how answers are scored."""


def _asking(table: Table, source: str, task: str, names: dict[str, str]) -> Layout:
    """The layout of rows that ask; pairs of answers ask too, by what both answer."""
    told = bare(table)
    try:
        return LAYOUTS[recognise(told, source, task, names, to_answer=True)]
    except LuthierError:
        pair = preference_layout(told)
        if pair is None or kind_of(pair) != PAIRS:
            raise
        return PREFERENCES[pair]


def _with_names(table: Table) -> Table:
    """The table with its classes by name where rows are answers, of which a number says nothing."""
    if not table.classes or not answered(present(table.rows)):
        return table
    named = mapped(table.rows, lambda numbered: (numbered[0], with_class_names(numbered[1], table)))
    return dataclasses.replace(table, rows=named)


def named_columns(
    table: Table, named: dict[str, str], columns: Sequence[str], source: str
) -> tuple[Table, dict[str, str], list[str]]:
    """Returns (the table under names that layouts know, these names, columns that made room for others)."""
    named = meanings(table, named)
    others = (c for layout in PREFERENCES.values() for c in layout.reads)
    known = dict.fromkeys((*known_columns(), *others, *ROW_FLAGS, *columns))
    rows, gone = renamed(table.rows, named, known, source)
    return dataclasses.replace(table, rows=rows), named, gone


def meanings(table: Table, named: Mapping[str, str]) -> dict[str, str]:
    """Returns {what it means: the column}: what is `named`, and what sources are known to call otherwise."""
    return {**named, **_other_words(table, {*present(table.rows), *named})}


def _other_words(table: Table, names: set[str]) -> dict[str, str]:
    """The names of labels that a source calls otherwise: a list of them per row stays `labels`, beside words `tags`.

    Sounds and what is said in them go by the names of data sets of speech.
    """
    heard = columns_of(table, names)
    names = names | set(heard)
    return heard | _other_labels(table, names)


def _other_labels(table: Table, names: set[str]) -> dict[str, str]:
    if "tokens" in names:
        other = next((each for each in ("ner_tags", "labels") if each in names), None)
        return {"tags": other} if other and "tags" not in names else {}
    if "labels" not in names or "label" in names or not names & set(ITEMS):
        return {}
    held = (row.get("labels") for _, row in table.rows)
    first = next((value for value in held if value not in (None, "")), None)
    return {} if isinstance(decoded(first), list) else {"label": "labels"}


ITEMS = ("text", "image", "audio")
"""What `labels` beside it names the class of, as `label` does."""


def _unread(table: Table, layout: Layout, beside: Sequence[str]) -> list[str]:
    turns = (*layout.turns, *(name for name in ("history",) if name in layout.reads))
    found = unread((row for _, row in table.rows), {*layout.reads, *beside, *table.read}, turns, layout.within)
    shown = [f"file {name}" for name in table.left[:FILES]]
    more = len(table.left) - len(shown)
    said = [f"{name} (beside the rows)" for name in table.beside]
    return [*found, *said, *filter(None, [table.apart]), *shown, *([f"{more:,} more files"] if more > 0 else [])]


FILES = 5
"""Unread files that are named."""


def check_task(task: str | None) -> None:
    """Raises on an unknown task."""
    known = sorted({t for layout in ALL.values() for t in layout.tasks})
    if task is not None and task not in known:
        raise LuthierError(f"no task {task!r}{near(task, known)} There are: {', '.join(known)}.")


def parsed(
    table: Table, layout: Layout, columns: Sequence[str], prompts: bool = False
) -> tuple[Sequence[Example], Bad]:
    def example(numbered: tuple[int, Row]) -> Example:
        number, row = numbered
        check_flags(row)
        told = unanswered(row, layout) if prompts else row
        fields = pictured(layout.parse(told, table.folder), told, table.folder)
        if prompts and (told is not row or reference_of(row) is not None):
            fields |= {"answer": reference_of(row)}
        beside = {column: row[column] for column in columns if row.get(column) is not None}
        return Example(row=number, **fields, meta=beside)

    seen: set[str] = set()
    hashed = Hashed()

    def see(made: Example) -> None:
        note_kind(made, seen)
        if isinstance(table.rows, Lazy):  # a pass of its own would read them all again
            hashed.see(made)

    rows, bad = examples_of(table.rows, example, lambda numbered: numbered[0], see)
    return noting(rows, {"kinds": seen, **hashed.notes()}), bad


def split_gym(source: str, train: int, test: int, seed: int = 0) -> tuple[Examples, Examples]:
    """Returns (`train` problems, `test` problems) of a gym task, no question in both and no test question
    twice.

    Test problems whose question training has seen are replaced by further ones; raises when a task
    has too few distinct questions.
    """
    from luthier.core.contracts.example import without

    learned = load(source, limit=train, seed=seed, split="train")
    pool = learned
    fresh, drawn = [], test
    while len(fresh) < test and drawn < 32 * test:
        drawn = min(2 * drawn, OFFSETS["test"])
        pool = without(load(source, limit=drawn, seed=seed, split="test"), learned)
        fresh = list({example.key(): example for example in pool.rows}.values())
    if len(fresh) < test:
        raise LuthierError(
            f"{source}: only {len(fresh)} of {drawn} test problems do not occur among {train} training problems; "
            f"{test} are needed. Train on fewer, or choose wider settings."
        )
    return learned, pool.keep(fresh[:test])
