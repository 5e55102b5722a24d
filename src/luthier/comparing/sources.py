"""The data of a study: several sources made one, a test part held out where none is given, all read and checked."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import data
from luthier.comparing.study import DataSet
from luthier.core.errors import LuthierError, near
from luthier.core.records import read_text
from luthier.data import Examples
from luthier.data.apart import apart
from luthier.data.columns import mapping
from luthier.data.table import Table
from luthier.training.spec import Training

FOLDER, STUDY = "data", "study.json"
HELD_OUT = 0.2
"""Share of the rows that is tested on where a single file is all there is."""
CLASSES = ("accuracy", "mcc")
METRICS = {
    "classification": CLASSES,
    "image-classification": CLASSES,
    "audio-classification": CLASSES,
    "regression": ("pearson",),
    "multi-label": ("micro_f1", "exact_match"),
    "token-classification": ("f1", "accuracy"),
    "question-answering": ("f1", "exact_match"),
    "embedding": ("mrr@10", "accuracy@1"),
    "speech-to-text": ("word_accuracy",),
}
"""Main metrics of the tasks that are not generative; more is better."""


@dataclass(frozen=True)
class Sourced:
    """A data set as runs read it."""

    name: str
    train: str
    """What `Run.data` is."""
    examples: Examples
    """The training rows of the first seed."""
    tests: dict[str, Examples]
    metric: str
    validation: str | None
    """What `Run.eval_data` is."""
    fingerprint: str
    """Of the rows that the seeds draw from."""
    notes: tuple[str, ...] = ()
    """What was left out of training, because it is tested on."""

    @property
    def task(self) -> str:
        """What models are fitted for."""
        return self.examples.task

    @property
    def labels(self) -> list[str] | None:
        """The classes, in order."""
        return self.examples.labels

    def fingerprints(self) -> dict[str, str]:
        """Of the rows that training draws from and of each part of the test."""
        return {"what is trained on": self.fingerprint} | {name: each.fingerprint for name, each in self.tests.items()}


def sourced(name: str, given: DataSet, training: Training, seeds: Sequence[int], folder: Path) -> Sourced:
    """Reads a data set, its tests included; several training files are joined in `folder`.

    A row of the training or validation part whose problem is tested on (see `Example.problem`) is left out of it.
    """
    train = (
        given.train[0]
        if len(given.train) == 1
        else _joined(given.train, given, folder / FOLDER / f"{name}.train.jsonl")
    )
    single = len(given.train) > 1 or os.path.isfile(os.path.expanduser(train))
    parts = given.test
    if not parts and single:
        train, held = _held_out(train, given, folder / FOLDER / name)
        parts = {name: held}
    examples = [_trained_on(train, given, limit=given.rows, seed=seed) for seed in (seeds if not parts else seeds[:1])]
    task = examples[0].task
    if parts:
        tests = {part: _test(source, given, task) for part, source in parts.items()}
    else:
        tests = {name: _test(train, given, task, seen=examples)}
    for part, each in tests.items():
        strange = sorted(set(each.labels or []) - set(examples[0].labels or each.labels or []))
        if strange:
            raise LuthierError(f"data {name}: the test {part} has classes that training lacks: {', '.join(strange)}.")
    metric, tests = _measured(name, given, task, tests)
    validation, notes = given.validation, []
    if parts:
        train = _unseen(train, "training", name, tests, given, folder, notes)
        validation = validation and _unseen(validation, "validation", name, tests, given, folder, notes)
        examples = [_trained_on(train, given, limit=given.rows, seed=seeds[0])]
    if given.validation is None and not training.eval_fraction:
        raise LuthierError(
            f"data {name} has no validation part; name one (validation), or hold rows out (eval_fraction)."
        )
    drawn = given.rows if _drawn(train) else None
    print_of = _trained_on(train, given, limit=drawn).fingerprint
    if examples[0].unread:
        notes.append(f"nothing reads {', '.join(examples[0].unread)} of {name}")
    return Sourced(name, train, examples[0], tests, metric, validation, print_of, tuple(notes))


def _drawn(source: str) -> bool:
    """Whether rows are made as many as are asked for."""
    return source.startswith(("gym:", "mix:"))


def _trained_on(source: str, given: DataSet, limit: int | None = None, seed: int = 0) -> Examples:
    """The rows of a source that are trained on."""
    return data.load(source, limit=limit, seed=seed, split="train", task=given.task, named=given.columns)


def _unseen(
    source: str, part: str, name: str, tests: Mapping[str, Examples], given: DataSet, folder: Path, notes: list[str]
) -> str:
    """The source itself, or a file of its rows without those that are tested on; `notes` then tells how many."""
    if _drawn(source) or (part == "validation" and source in given.train):  # of the latter, its own test split
        return source
    whole = data.load(source, split="train" if part == "training" else None, task=given.task, named=given.columns)
    kept = whole
    for each in tests.values():
        kept = data.without(kept, each)
    left_out = len(whole) - len(kept)
    if not left_out:
        return source
    if not kept.rows:
        raise LuthierError(f"data {name}: every row of {source} is tested on; give other rows for {part}.")
    numbers = {example.row for example in kept.rows}
    table = data.read(source, "train")
    rows = [_apart(row, table, given) for number, row in table.rows if number in numbers]
    notes.append(f"{left_out} of {len(whole)} {part} rows of {name} are problems of its tests, and were left out")
    return _write(rows, folder / FOLDER / f"{name}.{part}.unseen.jsonl")


def _test(source: str, given: DataSet, task: str, seen: Sequence[Examples] = ()) -> Examples:
    """The rows of a part of the test; of a source with splits, its test rows that no training row repeats."""
    found = data.load(source, limit=given.test_rows, task=task, split="test", named=given.columns)
    for each in seen:
        found = data.without(found, each)
    if not found.rows:
        raise LuthierError(f"every test row of {source} is also a training row; give other rows (test).")
    return found


def _measured(name: str, given: DataSet, task: str, tests: dict[str, Examples]) -> tuple[str, dict[str, Examples]]:
    """(the main metric, the tests with their scorers)."""
    if task in METRICS:
        known = METRICS[task]
        if given.metric not in (None, *known):
            hint = near(str(given.metric), known)
            raise LuthierError(f"data {name}: no metric {given.metric!r}{hint} Of {task}: {', '.join(known)}.")
        return given.metric or known[0], tests
    scored = {
        part: dataclasses.replace(each, scorer=data.scorer_for(each, given.metric)) for part, each in tests.items()
    }
    names = {each.scorer.name if each.scorer else "" for each in scored.values()}
    if "" in names:
        raise LuthierError(
            f"data {name}: its test rows hold no answers to score; give rows with a prompt and an answer."
        )
    return names.pop() if len(names) == 1 else "score", scored


# --- files of the study's own ----------------------------------------------------------------------


def _joined(sources: Sequence[str], given: DataSet, target: Path) -> str:
    """One file with the rows of all sources, in order."""
    rows = [row for source in sources for row in _rows(source, given)]
    return _write(rows, target)


def _held_out(source: str, given: DataSet, target: Path) -> tuple[str, str]:
    """(training file, test file) of a single file, divided by a fixed seed."""
    examples = _trained_on(source, given)
    kept, held = data.split(examples, HELD_OUT, seed=0)
    table = data.read(source)
    rows = {number: _apart(row, table, given) for number, row in table.rows}
    parts = {name: [rows[example.row] for example in each.rows] for name, each in (("train", kept), ("test", held))}
    train, test = (_write(part, target.with_name(f"{target.name}.{name}.jsonl")) for name, part in parts.items())
    return train, test


def _rows(source: str, given: DataSet) -> list[dict[str, Any]]:
    table = data.read(source, "train")
    if table.bad:
        row, reason = table.bad[0]
        raise LuthierError(f"{source}: row {table.place(row)} cannot be read: {reason}.")
    return [_apart(row, table, given) for _, row in table.rows]


def _apart(row: dict[str, Any], table: Table, given: DataSet) -> dict[str, Any]:
    """The row as another file may hold it."""
    return apart(row, table, data.meanings(table, mapping(given.columns)))


def _write(rows: list[dict[str, Any]], target: Path) -> str:
    """JSON lines, whole or not at all; a file that says the same is left alone."""
    try:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError as error:
        raise LuthierError(
            f"{target.name}: rows of pictures or sounds cannot be joined or divided, nor those left out that are "
            f"tested on ({error}); give files without them."
        ) from None
    if not target.is_file() or read_text(target) != text:
        study = target.parent.parent
        if target.is_file() and (study / STUDY).is_file():
            raise LuthierError(
                f"{target} was made of other rows: the data of the study in {study} have changed. Put them back, or "
                "choose another folder (out)."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    return str(target)
