"""Before the weights: every task read and encoded, with classes in one order, and what does not fit refused."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from luthier.core.contracts.example import Examples
from luthier.core.errors import LuthierError
from luthier.core.lazy import chained
from luthier.data.labels import labels_in_order
from luthier.training.folder import tokens_of
from luthier.training.prepare import Prepared, prepare
from luthier.training.processes import processes
from luthier.training.rows import read_rows
from luthier.training.sequences.memory import Kept, repeated, reservoir
from luthier.training.sequences.spec import TaskSequence, check_run
from luthier.training.spec import Run

SHARE = 0.5


@dataclass(frozen=True)
class Task:
    """One task, its rows read and encoded."""

    name: str
    run: Run
    """What is trained on it; its folder is below the sequence's."""
    prepared: Prepared
    """Its own rows, without evaluation rows: these are `test`."""
    test: Examples
    encoded_test: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """A sequence whose rows are read."""

    run: Run
    spec: TaskSequence
    tasks: list[Task]
    labels: list[str] | None
    """The classes of all tasks, sorted; None without classes."""
    notes: list[str]
    """What the user should hear before training."""

    @property
    def names(self) -> list[str]:
        """The names of the tasks."""
        return [task.name for task in self.tasks]

    @property
    def stages(self) -> list[int]:
        """The tasks after which the model is tested: all, or the last where all are trained jointly."""
        return [len(self.tasks) - 1] if self.spec.by == "joint" else list(range(len(self.tasks)))

    def held(self, number: int) -> Kept:
        """Returns the rows of tasks before `number` that the buffer holds."""
        counts = [len(task.prepared.train) for task in self.tasks[:number]]
        return reservoir(counts, self.spec.rows_kept, self.run.training.seed)

    def features(self, rows: Kept) -> list[dict[str, Any]]:
        """Returns encoded rows by (task, place)."""
        return [self.tasks[task].prepared.train[row] for task, row in rows]

    def mixed(self, number: int) -> Prepared:
        """Returns the rows that task `number` is trained on."""
        own = self.tasks[number].prepared
        if self.spec.by == "replay" and number:
            share = SHARE if self.spec.replay_share is None else self.spec.replay_share
            rows = repeated(self.held(number), len(own.train), share, self.run.training.seed)
            return dataclasses.replace(own, train=chained([own.train, self.features(rows)]))
        if self.spec.by in ("cumulative", "joint"):
            parts = [task.prepared for task in self.tasks[: number + 1]]
            examples = joined([part.examples for part in parts])
            return dataclasses.replace(own, train=chained([part.train for part in parts]), examples=examples)
        return own

    def to_dict(self) -> dict[str, Any]:
        """Returns what sequence.json keeps, to tell a sequence from others."""
        data = [
            {
                "name": task.name,
                "rows": len(task.prepared.train),
                "fingerprint": task.prepared.examples.fingerprint,
                "tests": len(task.test),
                "test_fingerprint": task.test.fingerprint,
                "tokens": tokens_of(task.prepared),
            }
            for task in self.tasks
        ]
        return {"run": self.run.to_dict(), "sequence": self.spec.to_dict(), "data": data, "labels": self.labels}


def joined(parts: list[Examples]) -> Examples:
    """Returns the rows of several tasks as those of one."""
    together = hashlib.sha256(" ".join(part.fingerprint for part in parts).encode()).hexdigest()
    return dataclasses.replace(parts[-1], rows=chained([part.rows for part in parts]), fingerprint=together)


def planned(run: Run, spec: TaskSequence) -> Plan:
    """Reads and encodes every task; whatever does not fit raises `LuthierError` before any weights are loaded."""
    check_run(run, processes())
    runs = []
    for number, source in enumerate(spec.tasks):
        tests = spec.tests[number] if spec.tests else None
        out = str(Path(run.out) / "tasks" / f"{number + 1}-{name_of(source)}")
        runs.append(dataclasses.replace(run, data=source, eval_data=tests, out=out))
    check_kinds(runs)
    read = [(own, prepare(own, shared=True)) for own in runs]
    check_held(read)
    labels = sorted({name for _, p in read for name in p.examples.labels or []}) or None
    if labels is not None and len(labels) < 2:
        raise LuthierError(
            f"all tasks together have one class ({labels[0]}), so there is nothing to tell apart; expected two or more."
        )
    tasks = [_task(number, own, prepared, labels) for number, (own, prepared) in enumerate(read)]
    return Plan(run, spec, tasks, labels, _notes(tasks, [prepared.examples.labels for _, prepared in read]))


def name_of(source: str) -> str:
    """Returns a short name of a source that a folder may have."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).stem).strip("-")[:40] or "task"


def check_kinds(runs: Sequence[Run]) -> None:
    """Raises for rows of another kind than those of the first task that has classes, or of the first.

    Before any are encoded: what fails then, such as a tokenizer that has no token for an end, is no reason to tell.
    """
    read = [(run, read_rows(run, 1)) for run in runs]
    first, kind = next(((run, rows) for run, rows in read if rows.labels), read[0])
    for run, rows in read:
        if rows.task != kind.task or (rows.labels is None) != (kind.labels is None):
            without = " (its rows have no label)" if kind.labels and not rows.labels else ""
            raise LuthierError(
                f"{run.data} has rows for {rows.task}{without}, and {first.data} for {kind.task}; one model is "
                "fitted to all tasks, so they must be of one kind. Say which columns are meant (columns)."
            )


def check_held(read: Sequence[tuple[Run, Prepared]]) -> None:
    """Raises for tasks without rows to test on."""
    for run, other in read:
        if other.held is None:
            raise LuthierError(
                f"{run.data} leaves no row to test on; give tests, one source for each task, or hold a share of the "
                "rows out (eval_fraction)."
            )


def _task(number: int, run: Run, prepared: Prepared, labels: list[str] | None) -> Task:
    """A task with the classes of all."""
    assert prepared.held is not None
    own, order = prepared.examples.labels, SimpleNamespace(label2id={name: i for i, name in enumerate(labels or [])})
    train, test = (labels_in_order(part, own, order) for part in (prepared.train, prepared.evaluation))
    plain = labels_in_order(prepared.plain, own, order)
    examples = dataclasses.replace(prepared.examples, labels=labels)
    held = dataclasses.replace(prepared.held, labels=labels)
    alone = dataclasses.replace(prepared, train=train, plain=plain, examples=examples, evaluation=[], held=None)
    return Task(f"{number + 1}-{name_of(run.data)}", run, alone, held, test)


def _notes(tasks: Sequence[Task], labels: Sequence[list[str] | None]) -> list[str]:
    """What the user should hear: tasks of one class, and test rows that another task trains on."""
    found = []
    for task, own in zip(tasks, labels, strict=True):
        if own is not None and len(own) == 1:
            found.append(
                f"{task.name} has one class ({own[0]}): a model that always says it scores 100% there, and its "
                "accuracy tells nothing of what was learned."
            )
    for task in tasks:
        tested = {row.key() for row in task.test.rows}
        for other in tasks:
            shared = 0 if other is task else len(tested & {row.key() for row in other.prepared.examples.rows})
            if shared:
                found.append(f"{shared:,} test rows of {task.name} are training rows of {other.name}.")
    return found
