"""The rows of an unlearning: those to forget, to retain and new ones, read and checked against the run's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier import data, models
from luthier.core.contracts.example import Example, Examples, last_answer
from luthier.core.errors import LuthierError
from luthier.core.paths import path_of
from luthier.core.storage import format as format_
from luthier.core.storage.folder import adapter_folder
from luthier.training import rows as of_a_run
from luthier.training.folder import read_run
from luthier.training.spec import Run
from luthier.training.unlearning.many import check_classes, check_models
from luthier.training.unlearning.spec import Unlearn

Features = Sequence[dict[str, Any]]
CLASSIFIERS = ("classification", "image-classification", "audio-classification")


@dataclass(frozen=True)
class Rows:
    """The rows of an unlearning: read, and encoded as the run's were."""

    forget: Examples
    retain: Examples
    test: Examples | None
    encoded: Mapping[str, Features]
    """By name (forget, retain, test)."""
    processor: Any
    collate: data.Collator
    task: str
    labels: list[str] | None
    """The classes in the order that rows were encoded by."""


def trained_run(spec: Unlearn) -> Run:
    """Returns the run whose adapter is to forget."""
    folder = path_of(spec.adapter)
    if not (folder / "run.json").is_file():
        raise LuthierError(
            f"{spec.adapter} is not a run of luthier train (run.json is not there): what an adapter was trained on "
            "must be known, or nothing tells what it is to forget."
        )
    run = read_run(folder)
    return dataclasses.replace(run, model=spec.model) if spec.model else run


def read_rows(spec: Unlearn, run: Run) -> Rows:
    """Reads and encodes the rows; raises for those that contradict one another."""
    task = models.fitted_task(format_.read(adapter_folder(spec.adapter)))
    if task not in ("causal-lm", *CLASSIFIERS):
        raise LuthierError(
            f"{spec.adapter} was fitted for {task}; rows are forgotten by classifiers and causal language models."
        )
    settings: dict[str, Any] = {"task": task, "named": run.columns, "skip_bad_rows": run.skip_bad_rows}
    known, held = _parts(run)
    read = {name: data.load(getattr(spec, name), **settings) for name in ("forget", "retain", "test")
            if getattr(spec, name) is not None}  # fmt: skip
    check_rows(spec, run, read, known)
    check_classes(spec, known.labels, read["retain"].labels)
    check_models(spec, run, held, read.get("test"))
    if spec.unlearning.matches and known.labels is None:
        raise LuthierError(
            f"{spec.unlearning.name()} predicts every logit of a row, and a model for {task} has as many as its "
            "vocabulary for each token; it is for classifiers. Take ascent, kl or retrain."
        )
    processor = models.processor_of(run.model, task)
    encode = {"task": task, "max_length": run.training.max_length, "labels": known.labels}
    encoded = {name: data.encode_all(rows, processor, truncate=run.training.truncate, **encode)
               for name, rows in read.items()}  # fmt: skip
    collate = data.collator_for(task, processor)
    return Rows(read["forget"], read["retain"], read.get("test"), encoded, processor, collate, task, known.labels)


def learned(run: Run) -> Examples:
    """Returns the rows that a run was trained on: those within its limit, without what it held out.

    Raises `LuthierError` for a run whose rows a selection chose.
    """
    return _parts(run)[0]


def _parts(run: Run) -> tuple[Examples, Examples | None]:
    """(the rows that a run was trained on, those of its data that it held out)."""
    if run.select is not None:
        raise LuthierError(
            f"the rows of this run were chosen by {run.select.name()}, and its record does not say which; train on a "
            "file of the chosen rows (luthier select … --out), and unlearn from that."
        )
    rows = of_a_run.read_rows(run, run.limit)
    return (rows, None) if run.eval_data is not None else of_a_run.divide(run, rows)


def with_answer(row: Example) -> tuple[object, ...]:
    """Returns what makes two rows the same: the input with its answer."""
    turns = row.messages or []
    said = turns[last_answer(turns)].get("content") if any(turn["role"] == "assistant" for turn in turns) else None
    return row.key(), str(row.label), said


def check_rows(spec: Unlearn, run: Run, read: Mapping[str, Examples], known: Examples) -> None:
    """Raises for rows to forget that were not learned, and for rows in two of the sets."""
    inputs, trained = {row.key() for row in known.rows}, {with_answer(row) for row in known.rows}
    keys = {name: {row.key() for row in rows.rows} for name, rows in read.items()}
    for name, what in (("forget", "they cannot be forgotten"), ("retain", "there is nothing to retain of them")):
        strange = [row for row in read[name].rows if with_answer(row) not in trained]
        if strange:
            other = ", which has another answer there" if strange[0].key() in inputs else ""
            raise LuthierError(
                f"{len(strange):,} of {len(read[name]):,} rows of {getattr(spec, name)} are not in what {spec.adapter} "
                f"was trained on, {run.data} within its limit and without the rows that it held out (row "
                f"{strange[0].row} first{other}): {what}. Leave them out."
            )
    for name in ("retain", "test"):
        shared = len(keys["forget"] & keys.get(name, set()))
        if shared:
            raise LuthierError(
                f"{shared:,} rows are in {spec.forget} and in {getattr(spec, name)} too; a row is in one."
            )
    if keys.get("test", set()) & inputs:
        raise LuthierError(
            f"{spec.test} holds rows of {run.data}, which were learned; a test needs rows that were not."
        )
    for name, rows in read.items():
        if known.labels is not None and set(rows.labels or []) - set(known.labels):
            raise LuthierError(
                f"{getattr(spec, name)} has classes that {run.data} has not; the adapter knows none of them."
            )
