"""Checking the rows of a study before the first run: they are read and encoded as training and testing will."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any

from luthier import data
from luthier.comparing.sources import Sourced
from luthier.comparing.study import Study
from luthier.core.errors import LuthierError
from luthier.data import Examples
from luthier.methods.choices import CHOICES
from luthier.training.prepare import prepare
from luthier.training.progress import quiet
from luthier.training.spec import Run
from luthier.training.task_columns import columns_of

LONGEST = 1024
"""Tokens of a piece of held text."""


def trained_on(runs: Iterable[Run], attempt: Callable[[Callable[[], Any]], Any]) -> None:
    """Prepares the rows of every run that has other ones than those before it: training, validation, objective.

    What chooses rows is left out, for it may have to load a model; that its target can be read is seen.
    """
    seen: set[str] = set()
    for run in runs:
        key = _encoding_key(run)
        if key not in seen:
            seen.add(key)
            attempt(lambda run=run: _prepared(run))


def _encoding_key(run: Run) -> str:
    """What the encoded rows follow from."""
    settings, plain = run.training, run.to_dict()
    drawn = settings.seed if run.limit is not None or run.data.startswith("gym:") else None
    chosen = [name for name, choice in CHOICES.items() if choice.rows]
    found: list[Any] = [plain[key] for key in ("model", "data", "eval_data", "limit", "columns", *chosen)]
    found += [settings.max_length, settings.truncate, settings.eval_fraction, drawn, columns_of(run)]
    found.append(run.calibration.source)
    return json.dumps([*found, plain["form"] if columns_of(run) else None])


def _prepared(run: Run) -> None:
    with quiet():
        if run.target is not None:
            data.load(run.target, task=run.task, named=run.columns)
        prepared = prepare(dataclasses.replace(run, select=None, select_rows=None, target=None))
    if run.select_rows is not None and not 1 <= run.select_rows <= len(prepared.examples):
        raise LuthierError(f"select_rows is {run.select_rows}; here are {len(prepared.examples)} rows to choose from.")
    if prepared.held is None and run.training.eval_fraction:
        raise LuthierError(
            "no row is held out for the validation loss; give more rows, a larger share (eval_fraction), or a "
            "validation part."
        )


def tested_on(read: Sourced, processor: Any, max_length: int, positions: int | None) -> None:
    """Encodes every test row, as `evaluate` does: prompts to answer may be of any length, as far as `positions` go."""
    for part, each in read.tests.items():
        try:
            _encoded(read, each, processor, max_length, positions)
        except LuthierError as error:
            raise LuthierError(f"the test {part} ({each.source}): {error}") from None


def _encoded(read: Sourced, examples: Examples, processor: Any, max_length: int, positions: int | None) -> None:
    if read.task == "causal-lm":
        for example in examples.rows:
            data.prompt_ids(example, processor)
        return
    limit = None if read.task in ("seq2seq", "speech-to-text") else max_length
    data.encode_all(examples, processor, task=read.task, max_length=limit, labels=read.labels, positions=positions)


def read_held(study: Study) -> Examples | None:
    """Returns the held texts, on which the loss before and after a run tells what was forgotten."""
    if study.held is None:
        return None
    found = data.load(study.held, task="causal-lm")
    if not found.rows:
        raise LuthierError(f"{study.held} holds no text.")
    return found


def held_texts(study: Study, read: Sourced, processor: Any) -> None:
    """Encodes the held texts, where they are measured."""
    if read.task == "causal-lm" and (held := read_held(study)) is not None:
        data.encode_all(held, processor, task="causal-lm", max_length=LONGEST, truncate=True)
