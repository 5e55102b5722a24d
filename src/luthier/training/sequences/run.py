"""A sequence of tasks, from its specification to its folder: training, testing, and going on where it was killed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import set_seed

from luthier.core.errors import LuthierError
from luthier.core.files import claimed, committed, discard
from luthier.core.owner import owned
from luthier.core.records import as_read, recorded, replace_json
from luthier.data import kind_of
from luthier.models import Loaded
from luthier.training import metrics
from luthier.training.context import loading_for
from luthier.training.folder import holds_run, versions
from luthier.training.penalised import STATE
from luthier.training.progress import quiet
from luthier.training.sequences.matrix import Matrix
from luthier.training.sequences.plot import plot
from luthier.training.sequences.prepare import Plan, planned
from luthier.training.sequences.score import Scorer, scores_of
from luthier.training.sequences.session import FILE, KEPT, TaskSession, base
from luthier.training.sequences.spec import TaskSequence
from luthier.training.spec import Run

SPEC, MATRIX, RESULT, PLOT, ADAPTER = "sequence.json", "matrix.json", "result.json", "matrix.png", "adapter"
FREE = ("out", "data", "eval_data")
"""Fields of the run that do not tell one sequence from another."""


@dataclass(frozen=True)
class Continued:
    """What came of a sequence of tasks."""

    folder: Path
    adapters: list[Path]
    """The adapter of each task; the last one is what goes on."""
    matrix: Matrix
    figures: dict[str, dict[str, float]]
    """Average accuracy, transfer and forgetting, each with its interval."""
    kept: dict[str, int]
    """What is kept of earlier tasks beside the adapter: `rows` of the buffer, `tokens` in them, `bytes` of tensors."""
    seconds: dict[str, float]
    """Seconds of training by task."""


def carry_out(
    run: Run,
    spec: TaskSequence,
    *,
    answers: Scorer | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Continued:
    """Trains a model on one task after another, tests it on all of them after each, and fills the folder `run.out`.

    `run` is what is trained on each task, with the penalty or update of `spec.applied`; its data are the first task's.
    `answers` scores test rows (`luthier.evaluating` has what does); without it the matrix holds minus the loss of rows.
    The folder gets `sequence.json`, `matrix.json` (the scores of all test rows), `result.json`, `matrix.png`, a run
    folder for each task in `tasks/`, and the last adapter in `adapter/`. With `resume` a killed sequence goes on within
    or between tasks, with the same bits. Raises `LuthierError` for all bad input before any weights are loaded.
    """
    folder = claimed(run.out, SPEC, "a sequence", resume, overwrite)
    console = Console(stderr=True, quiet=not progress)
    with quiet(), loading_for(run), owned(folder):
        plan = planned(run, spec)
        answers = answers if scored(plan) else None
        begin(folder, plan, overwrite)
        for note in notes(plan):
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        matrix = _tested_before(plan, folder, answers)
        for number in plan.stages:
            if number in matrix.after:
                continue
            console.rule(f"task {number + 1} of {len(plan.tasks)}: {plan.tasks[number].name}")
            matrix = _task(plan, number, folder, matrix, answers, progress)
            _tell(console, matrix, number)
        return _finish(plan, folder, matrix, "minus the loss" if answers is None else "score")


def scored(plan: Plan) -> bool:
    """Returns whether test rows have answers to compare; raises where these are asked for and there are none."""
    if plan.spec.score == "answers" and (lacking := unanswered(plan)):
        raise LuthierError(
            f"score=answers compares answers, and {', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} none; "
            "take score=loss, or give rows with answers."
        )
    return not unanswered(plan) and plan.spec.score != "loss"


def unanswered(plan: Plan) -> list[str]:
    """Returns the names of the tasks whose test rows have no answers to compare."""
    rows = {task.name: task.test for task in plan.tasks}
    return [name for name, each in rows.items()
            if (each.labels is None and each.scorer is None) or kind_of(each.layout) != "answers"]  # fmt: skip


def notes(plan: Plan) -> list[str]:
    """Returns what the user should hear before the long work."""
    lacking = unanswered(plan) if plan.spec.score is None else []
    if not lacking or len(lacking) == len(plan.tasks):
        return plan.notes
    some = f"{', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no answers to compare"
    return [*plan.notes, f"{some}, so all tasks are measured by minus the loss of a row."]


def begin(folder: Path, plan: Plan, overwrite: bool) -> None:
    """Notes what the sequence is; raises if the folder holds another one and is not to be overwritten."""
    here = as_read(plan.to_dict())
    if (folder / SPEC).is_file() and not overwrite:
        with recorded(folder / SPEC) as old:
            wrong = [name for name in here if _counts(here[name]) != _counts(old.get(name))]
        if wrong:
            raise LuthierError(
                f"{folder} holds another sequence, whose {' and '.join(wrong)} differ; give the settings and rows it "
                "was started with, or another folder (out)."
            )
        return
    discard(folder / "tasks")
    shutil.rmtree(folder / "tasks", ignore_errors=True)
    discard(folder / ADAPTER)
    for name in (MATRIX, RESULT, PLOT):
        (folder / name).unlink(missing_ok=True)
    replace_json(folder / SPEC, {**here, "versions": versions()})


def _counts(value: Any) -> Any:
    return {key: each for key, each in value.items() if key not in FREE} if isinstance(value, dict) else value


def _tested_before(plan: Plan, folder: Path, answers: Scorer | None) -> Matrix:
    """The matrix as far as it is known; its first row is of the model before training."""
    if (folder / MATRIX).is_file():
        with recorded(folder / MATRIX) as told:
            return Matrix.of(told)
    set_seed(plan.run.training.seed)  # heads that are new
    matrix = Matrix(plan.names, _tested(plan, base(plan), answers), {})
    replace_json(folder / MATRIX, matrix.to_dict())
    return matrix


def _tested(plan: Plan, loaded: Loaded, answers: Scorer | None) -> list[np.ndarray]:
    return [scores_of(plan, task, loaded, answers) for task in plan.tasks]


def _task(plan: Plan, number: int, folder: Path, matrix: Matrix, answers: Scorer | None, progress: bool) -> Matrix:
    """Trains on a task and tests after it."""
    session = TaskSession(plan, number, progress)
    done = session.train(resume=holds_run(session.run.folder), overwrite=False)
    loaded = Loaded(done.model, done.processor, plan.run.model, "", plan.tasks[number].prepared.task, [])
    scores = _tested(plan, loaded, answers)
    if plan.spec.adapters == "each":  # a task that was learned keeps its own adapter
        scores = [matrix.after[i][i] if i < number else each for i, each in enumerate(scores)]
    after = Matrix(matrix.names, matrix.before, {**matrix.after, number: scores})
    replace_json(folder / MATRIX, after.to_dict())
    return after


def _title(plan: Plan) -> str:
    return f"{plan.run.model}, {plan.run.form.name()}, by {plan.spec.by}"


def _tell(console: Console, matrix: Matrix, number: int) -> None:
    cells = matrix.means()[number + 1]
    told = "  ".join(f"{name} {value:.3f}" for name, value in zip(matrix.names, cells, strict=True))
    console.print(f"after {matrix.names[number]}: {told}", highlight=False, soft_wrap=True)


def _finish(plan: Plan, folder: Path, matrix: Matrix, score: str) -> Continued:
    """Puts the last adapter where commands look for it, and writes the figures."""
    adapters = [plan.tasks[number].run.folder / "adapter" for number in plan.stages]
    if plan.spec.adapters == "one":
        with committed(folder / ADAPTER) as temporary:
            shutil.copytree(adapters[-1], temporary, dirs_exist_ok=True)
    made = Continued(folder, adapters, matrix, matrix.figures(plan.run.training.seed), kept(plan), seconds(plan))
    plot(matrix, folder / PLOT, _title(plan), score)
    low, high = matrix.intervals(plan.run.training.seed)
    cells = {"mean": matrix.means(), "low": low, "high": high}
    replace_json(
        folder / RESULT,
        {
            "by": plan.spec.by,
            "tasks": matrix.names,
            "matrix": {name: known(each) for name, each in cells.items()},
            "figures": made.figures,
            "kept": made.kept,
            "seconds": made.seconds,
        },
    )
    return made


def known(cells: np.ndarray) -> list[list[float | None]]:
    """Returns cells as JSON holds them: None where nothing was tested."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in cells]


def kept(plan: Plan) -> dict[str, int]:
    """Returns what is kept of earlier tasks for the last one."""
    last, found = plan.tasks[-1].run, {"rows": 0, "tokens": 0, "bytes": 0}
    if plan.spec.keeps:
        rows = plan.features(plan.held(len(plan.tasks) - 1))
        found |= {"rows": len(rows), "tokens": sum(len(row.get("input_ids", ())) for row in rows)}
    elif plan.spec.by == "cumulative":
        found["rows"] = sum(len(task.prepared.train) for task in plan.tasks[:-1])
    if last.penalty is not None:
        running = sorted((last.folder / "checkpoints").glob(f"step-*/{STATE}"))
        held = [plan.tasks[-2].run.folder / KEPT / FILE, *running[-1:]]
        found["bytes"] = sum(path.stat().st_size for path in held if path.is_file())
    return found


def seconds(plan: Plan) -> dict[str, float]:
    """Returns the seconds of training of each task, interruptions left out."""
    lines: Mapping[int, list[dict[str, Any]]] = {i: metrics.read(plan.tasks[i].run.folder) for i in plan.stages}
    return {plan.tasks[i].name: metrics.seconds(each) for i, each in lines.items()}
