"""Running a plan: every stage is checked before the first one starts, and what was finished stays finished."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.core.files import claimed
from luthier.core.guard import written
from luthier.core.owner import owned
from luthier.core.paths import path_of
from luthier.core.records import recorded, replace_json
from luthier.core.storage.folder import adapter_at, read_adapter
from luthier.training import folder as folders
from luthier.training.prepare import Prepared, prepare
from luthier.training.processes import processes
from luthier.training.report import steps_of
from luthier.training.spec import Run
from luthier.training.stages.plan import Measured, Stage, StagePlan

if TYPE_CHECKING:
    from transformers import TrainerCallback

PLAN = "plan.json"
"""The record of a plan in its folder: its stages, and the adapters of those that are finished."""
SCORES, TABLE, PICTURE = ".scores.json", "pareto.json", "pareto.png"
WRITTEN = (PLAN, SCORES, TABLE, PICTURE)
"""What lies beside the stages."""
MANY = 10_000
"""Checkpoints that a stage keeps where all of them are to be scored."""


@dataclass(frozen=True)
class Finished:
    """A stage that was run."""

    name: str
    folder: Path
    steps: int
    loss: float | None
    eval_loss: float | None
    seconds: float
    """Time spent in training."""
    sha256: str
    """Of the adapter's tensors."""


@dataclass(frozen=True)
class Staged:
    """What came of a plan."""

    folder: Path
    stages: list[Finished]

    @property
    def adapter(self) -> Path:
        """The folder of the last stage's adapter."""
        return self.stages[-1].folder / "adapter"


def run_plan(
    plan: StagePlan | str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    told: Callable[[str], object] = str,
    trust_remote_code: bool = False,
) -> Staged:
    """Runs the stages of a plan (`luthier.training.stages.plan`), each a run folder in the plan's folder.

    Each stage starts with the adapter that the one before ended with; its optimiser and schedule begin anew. Before the
    first one starts, data, objective, method and selectors of all of them are looked at, so that a plan that cannot
    end is refused at once. With `resume` a plan goes on that was stopped within a stage or between two: finished
    stages stay as they are, and the adapters are those of a plan that was left alone. `overwrite` replaces the plan
    in the folder. `told` hears a line for each stage. `trust_remote_code` lets code of the model run, for the stages
    that say so.

    Raises `LuthierError` that names the stage, for a bad plan, and for a finished stage whose adapter has changed.
    """
    read = _read(plan, out)
    claim(read, resume, overwrite)
    with models.trusting(trust_remote_code), owned(read.folder):
        claim(read, resume, overwrite)  # again, now that nobody else is in it
        done = _finished(read) if resume else []
        read = check_plan(read, done)
        if overwrite:
            _clear(read.folder)
        _begin(read, done)
        for number, stage in enumerate(read.stages, 1):
            if number <= len(done):
                told(f"stage {number} of {len(read.stages)}, {stage.name}: finished before")
                continue
            told(f"stage {number} of {len(read.stages)}, {stage.name}: {stage.folder}")
            with _of(stage):
                done.append(_run(stage, progress, callbacks))
            _note(read.folder, done)
    return Staged(read.folder, done)


def _read(plan: StagePlan | str | Path, out: str | Path | None) -> StagePlan:
    from luthier.training.stages.plan import read_plan

    if isinstance(plan, StagePlan):
        if out is not None:
            raise LuthierError("the plan says where its folder is; give out to read_plan.")
        return plan
    return read_plan(plan, out)


@contextmanager
def _of(stage: Stage) -> Iterator[None]:
    """Whatever a stage refuses is told with its name."""
    try:
        yield
    except LuthierError as error:
        raise type(error)(f"stage {stage.name}: {error}") from error


# --- before ------------------------------------------------------------------------------------------


def check_plan(plan: StagePlan, done: Sequence[Finished] = ()) -> StagePlan:
    """Looks at the data, objective and method of every stage that is not `done`; returns the plan with the checkpoints
    that it measures. Raises `LuthierError` that names the stage."""
    first: Run | None = None
    task, labels, made = None, None, []
    for number, stage in enumerate(plan.stages):
        with _of(stage):
            if number < len(done):
                run = folders.read_run(stage.folder)
                made.append(stage)
                first = first or run
                continue
            run = _tried(stage, first)
            prepared = prepare(run)
            _check_kind(prepared, task, labels, plan.stages[number - 1].name if number else "")
            task, labels = prepared.task, prepared.examples.labels
            made.append(_kept(plan, stage, run, prepared))
            first = first or run
    if plan.measured is not None:
        _check_measured(plan.measured, task)
    return dataclasses.replace(plan, stages=tuple(made))


def _tried(stage: Stage, first: Run | None) -> Run:
    """The run of a stage, with the form of the first where its own adapter is not there yet."""
    from luthier.training.launched import check_processes, check_services
    from luthier.training.teacher import check_teacher

    there = stage.start is not None and adapter_at(stage.start) and not (stage.folder / folders.SPEC).exists()
    form = None if first is None or there else {"form": first.form, "where": first.where}
    run = stage.run(form)
    if run.trust_remote_code and not models.trusted():
        raise LuthierError(
            "it says trust_remote_code, which no file decides for you. Read the code that the model brings, and if you "
            "trust it, add --trust-remote-code (in Python, trust_remote_code=True)."
        )
    check_services(run.training.report_to)
    check_processes(run)
    if run.objective.teaches:
        from luthier.models import processor_of

        check_teacher(run, processor_of(run.model, run.task or "causal-lm"))
    return run


def _check_kind(prepared: Prepared, task: str | None, labels: list[str] | None, before: str) -> None:
    if task is not None and (prepared.task, prepared.examples.labels) != (task, labels):
        told = [f"{name} ({', '.join(each)})" if each else name for name, each in ((task, labels),)]
        here = prepared.task + (f" ({', '.join(prepared.examples.labels)})" if prepared.examples.labels else "")
        raise LuthierError(
            f"its model is for {here}, and the adapter of {before} is of one for {told[0]}; the stages of a plan train "
            "one model. Say task in the plan, or take other data."
        )


def _check_measured(measured: Measured, task: str | None) -> None:
    """Raises for data that no checkpoint could be scored on."""
    for name, source in (("task", measured.task), ("general", measured.general)):
        examples = data.load(source, split="test", limit=measured.limit, task=task, preferences=True)
        scorer = data.scorer_for(examples, measured.scorer if name == "task" else None)
        if data.kind_of(examples.layout) == "judged":
            raise LuthierError(f"[measure] {name}: {source} has single answers with a label; give pairs, or answers.")
        if scorer is not None and examples.task in ("causal-lm", "seq2seq"):
            data.refuse_unscorable(scorer, examples.rows)


def _kept(plan: StagePlan, stage: Stage, run: Run, prepared: Prepared) -> Stage:
    """The stage with the checkpoints that are to be scored, unless it says itself which it keeps."""
    if plan.measured is None:
        return stage
    steps, _ = steps_of(run, len(prepared.train), processes())
    usual = {"save_every": max(1, -(-steps // plan.measured.checkpoints)), "keep": MANY}
    more = {name: value for name, value in usual.items() if name not in stage.named}
    recipe = dataclasses.replace(stage.file.recipe, training={**stage.file.recipe.training, **more})
    return dataclasses.replace(stage, file=dataclasses.replace(stage.file, recipe=recipe))


# --- the folder --------------------------------------------------------------------------------------


def claim(plan: StagePlan, resume: bool, overwrite: bool) -> None:
    """Raises where the folder of a plan cannot be used; changes nothing."""
    folder = claimed(plan.folder, PLAN, "a plan", resume, overwrite)
    if resume and (folder / PLAN).is_file():
        _check_same(plan, read_record(folder))


def read_record(folder: str | Path) -> dict[str, Any]:
    """Returns what the folder of a plan says of it; raises `LuthierError` where there is none."""
    path = path_of(folder) / PLAN
    with recorded(path) as found:
        if not isinstance(found, dict) or not {"stages", "created", "versions"} <= set(found):
            raise LuthierError(f"{path} is not a plan's record, or a damaged one.")
        for entry in found["stages"]:
            odd = [key for key in ("name", "folder") if not isinstance(entry[key], str)]
            odd += [] if entry.get("sha256") is None else [key for key in RESULTS if key not in entry]
            if odd:
                raise ValueError(f"a stage has no {odd[0]}, or an odd one")
    return found


def _check_same(plan: StagePlan, record: dict[str, Any]) -> None:
    """Stages may be added behind those that were there; these have to be the same."""
    before = [each["name"] for each in record["stages"]]
    here = [each.name for each in plan.stages]
    begun = [name for name, stage in zip(before, record["stages"], strict=True) if Path(stage["folder"]).exists()]
    if here[: len(begun)] != begun:
        raise LuthierError(
            f"{plan.folder} holds the stages {', '.join(begun)}, and {plan.path} says {', '.join(here)}; give the plan "
            "it was started with, or another folder (out)."
        )


def _finished(plan: StagePlan) -> list[Finished]:
    """The stages that are finished, in their order; raises for one that is no longer what it was."""
    found: list[Finished] = []
    known = read_record(plan.folder)["stages"] if (plan.folder / PLAN).is_file() else []
    for stage, entry in zip(plan.stages, known, strict=False):
        if entry.get("sha256") is None:
            break
        with _of(stage):
            if not adapter_at(stage.folder) or read_adapter(stage.folder)[1]["sha256"] != entry["sha256"]:
                raise LuthierError(
                    f"the adapter in {stage.folder} is not the one that the stage ended with; what follows stands on "
                    "it. Put it back, or start again (overwrite)."
                )
            folders.same_run(_as_kept(stage), _as_kept_there(stage))
        found.append(Finished(stage.name, stage.folder, **{k: entry[k] for k in RESULTS}))
    return found


RESULTS = ("steps", "loss", "eval_loss", "seconds", "sha256")


def _as_kept(stage: Stage) -> Run:
    """The run of a finished stage as the plan says it now, without what only tells when to save."""
    from luthier.training.from_adapter import compared_with_start

    return _unsaved(compared_with_start(stage.run()))


def _as_kept_there(stage: Stage) -> Run:
    return _unsaved(folders.read_run(stage.folder))


def _unsaved(run: Run) -> Run:
    training = dataclasses.replace(run.training, save_every=None, keep=2)
    return dataclasses.replace(run, training=training, trust_remote_code=models.trusted())


def _clear(folder: Path) -> None:
    """Removes the run folders of the plan that was there."""
    if not (folder / PLAN).is_file():
        return
    for entry in read_record(folder)["stages"]:
        stage = folder / Path(entry["folder"]).name
        if folders.holds_run(stage):
            shutil.rmtree(stage)
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)


def _begin(plan: StagePlan, done: Sequence[Finished]) -> None:
    record = {
        "plan": str(plan.path),
        "stages": [
            {"name": stage.name, "folder": str(stage.folder)}
            | ({key: getattr(done[number], key) for key in RESULTS} if number < len(done) else {"sha256": None})
            for number, stage in enumerate(plan.stages)
        ],
        "measure": None if plan.measured is None else dataclasses.asdict(plan.measured),
        "versions": folders.versions(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    with written(str(plan.folder)):
        replace_json(plan.folder / PLAN, record)


def _note(folder: Path, done: Sequence[Finished]) -> None:
    record = read_record(folder)
    for entry, stage in zip(record["stages"], done, strict=False):
        entry |= {key: getattr(stage, key) for key in RESULTS}
    with written(str(folder)):
        replace_json(folder / PLAN, record)


# --- a stage -----------------------------------------------------------------------------------------


def _run(stage: Stage, progress: bool, callbacks: Sequence[TrainerCallback]) -> Finished:
    from luthier.training.session import Session

    session = Session(stage.run(), progress, callbacks=callbacks)
    result = session.train(resume=folders.holds_run(stage.folder), overwrite=False)
    return Finished(
        stage.name,
        stage.folder,
        steps=result.losses[-1][0] if result.losses else 0,
        loss=result.losses[-1][1] if result.losses else None,
        eval_loss=result.eval_loss,
        seconds=result.seconds,
        sha256=str(read_adapter(stage.folder)[1]["sha256"]),
    )
