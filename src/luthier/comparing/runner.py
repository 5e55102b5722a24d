"""The function `compare`: it runs a study from its plan to its report, and resumes after interruptions."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from rich.console import Console

from luthier.comparing.fit import fit
from luthier.comparing.fitted import Fitted
from luthier.comparing.folder import STUDY, prepared
from luthier.comparing.measures.costs import costs
from luthier.comparing.measures.foresight import foreseen
from luthier.comparing.measures.forgetting import forgetting
from luthier.comparing.measures.intruders import intruders
from luthier.comparing.measures.scores import tested
from luthier.comparing.plan import Job, Plan
from luthier.comparing.progress import shown
from luthier.comparing.record import FILE, Record, records, write
from luthier.comparing.report import latex, markdown
from luthier.comparing.report.table import save
from luthier.comparing.rows import read_held
from luthier.comparing.study import Study, label, read_study
from luthier.comparing.tune import place, tuned
from luthier.comparing.until import add_seeds, looks_of
from luthier.core.contracts.component import check_type
from luthier.core.errors import LuthierError
from luthier.core.notebook import table
from luthier.data import Examples
from luthier.methods.objectives.sft import SFT
from luthier.training.folder import versions
from luthier.training.report import resolved_settings

PILOT = 2
"""Seeds after which it is told what the rest could show."""
WAIT = 5.0
"""Seconds between looks at runs that another process makes."""
FAILURES = (LuthierError, RuntimeError, MemoryError, IndexError)
"""What ends a run and not the study: bad values, no memory left, rows longer than a model's positions."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of a study."""

    folder: Path
    records: list[Record]
    report: Path | None
    """The page; None where no report can be written."""

    def __repr__(self) -> str:
        return f"Comparison({str(self.folder)!r}: {len(self.records)} runs, {self.report or 'no report'})"

    def _repr_html_(self) -> str:
        return table(
            {
                "model": each.model,
                "data": each.data,
                "method": each.method,
                "seed": each.seed,
                each.metric: each.score,
                "trainable": each.trainable,
                "seconds": each.seconds,
            }
            for each in self.records
        )


def compare(
    study: Study | str | Path,
    data: str | None = None,
    *,
    out: str | Path = "study",
    test: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    budget: str | None = None,
    training: Mapping[str, Any] | None = None,
    held: str | None = None,
    tune: int | None = None,
    tune_steps: int | None = None,
    until_told: float | None = None,
    most_seeds: int | None = None,
    hours: float | None = None,
    progress: bool = True,
) -> Comparison:
    """Runs a study in the folder `out`, or resumes the one there, and writes its report.

    `study` is a `Study` or a file that holds one (see `luthier.comparing.study`); with `data`, it is a model to
    compare methods on. What else is given goes before what the study says; `seeds` are a number of them or a list.
    With `until_told`, a margin of the score, seeds are added until every two methods are told apart or shown to differ
    by less, at most `most_seeds` and for at most that many `hours`.
    Runs that are finished are not repeated; runs that another process is making are left to it, and a run that
    diverges or finds no memory does not stop the others.

    Raises `LuthierError` before the first run for all that does not fit, and for a folder that holds another study;
    after the last one, for those that failed.
    """
    check_type("data", data, str | None)  # a Path there is most likely the folder, which is `out`
    given = {"methods": methods, "seeds": seeds, "budget": budget, "training": training, "held": held}
    given |= {"tune": tune, "tune_steps": tune_steps}
    given |= {"until_told": until_told, "most_seeds": most_seeds, "hours": hours}
    return carry_out(study_of(study, data, test, {k: v for k, v in given.items() if v is not None}), out, progress)


def carry_out(study: Study, out: str | Path, progress: bool) -> Comparison:
    """Returns `compare`, for a study that is made."""
    folder, started = Path(out).expanduser(), time.monotonic()
    planned = prepared(study, folder)
    console = Console(stderr=True, quiet=not progress)
    for note in dict.fromkeys(note for each in planned.data.values() for note in each.notes):
        console.print(note, highlight=False)
    for line in taken(planned):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if study.until_told is not None:
        looks_of(study, folder)
    failed = run_all(planned, console)
    if study.until_told is not None:
        failed |= add_seeds(planned, console, run_all, started)
    found = save(folder)
    markdown.write(folder, found)
    latex.write(folder, found)
    report = write_report(folder) if found else None
    if failed:
        listed = "".join(f"\n  {title}: {reason}" for title, reason in failed.items())
        raise LuthierError(f"{len(failed)} of {len(planned.jobs)} runs failed; {folder} holds the others:{listed}")
    return Comparison(folder, found, report)


def taken(planned: Plan) -> list[str]:
    """Returns a line for each method, on each model and data set where they differ: the settings that its runs have."""
    lines = {}
    for job in planned.jobs:
        notes = "".join(f"; {note}" for note in job.method.notes)
        said = notes.removeprefix("; ") if job.method.kind == "untouched" else resolved_settings(job.run) + notes
        lines[f"{job.method.name}: {said}"] = None
    return list(lines)


def study_of(
    study: Study | str | Path,
    data: str | None,
    test: str | None,
    given: dict[str, Any],
    dataset: Mapping[str, Any] | None = None,
) -> Study:
    """Returns the study that the arguments describe; `dataset` holds further entries of the one data set."""
    if data is not None:
        source = {"train": data, **({} if test is None else {"test": test}), **(dataset or {})}
        return Study.from_dict({"models": str(study), "data": {label(data): source}, **given})
    if test is not None or dataset:
        raise LuthierError("a study's file says what is tested; give a model and data, or write it there.")
    read = study if isinstance(study, Study) else read_study(study)
    if not given:
        return read
    values = read.to_dict() | given | {"training": read.training | dict(given.get("training", {}))}
    values["settings"] = {k: v for k, v in values["settings"].items() if k in values["methods"]}
    return Study.from_dict(values)


def run_all(planned: Plan, console: Console) -> dict[str, str]:
    """Makes every run that is missing; returns the reasons of those that failed, by title."""
    held, failed, told = read_held(planned.study), {}, False
    left = list(planned.jobs)
    with shown(console, len(left)) as bar:
        while left:
            later = []
            for job in left:
                if job.seed in planned.study.seeds[PILOT:] and not told:
                    foretell(planned, console)
                    told = True
                with claimed(job) as ours:
                    if job.done:
                        _tidy(planned, job, keep_adapter=True)  # what a kill right after the record left
                        bar.skip()
                    elif not ours:
                        later.append(job)
                    else:
                        bar.start(job.title)
                        try:
                            bar.done(job.title, make(planned, job, held))
                        except FAILURES as error:
                            failed[job.title] = _told(error)
                            bar.failed(job.title, failed[job.title])
                        gc.collect()  # what a failed run leaves in memory, once its traceback is gone
            if len(later) == len(left):
                bar.wait(later[0].title)
                time.sleep(WAIT)
            left = later
    return failed


def foretell(planned: Plan, console: Console) -> None:
    """Tells, of the runs that are there, what difference all seeds and test rows could show."""
    for line in foreseen(records(planned.folder), len(planned.study.seeds)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def claimed(job: Job) -> Iterator[bool]:
    """Whether this process may make the run, which no other does while the context lasts."""
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(job.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def make(planned: Plan, job: Job, held: Examples | None) -> Record:
    """One run, from its search for a learning rate to its record on disk."""
    study = planned.study
    with filelock.FileLock(_dir(place(planned.folder, job)) / ".lock"):
        chosen, trials = tuned(study, planned.folder, job)
    fitted = fit(chosen)
    record = record_of(planned, chosen, fitted, held, trials)
    write(record.to_dict(), job.folder / FILE)
    _tidy(planned, job, study.keep_adapters)
    return record


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"


def _dir(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def record_of(planned: Plan, job: Job, fitted: Fitted, held: Examples | None, trials: list[dict[str, Any]]) -> Record:
    """Everything that is measured of a fitted model."""
    study = planned.study
    found = tested(study, job, fitted)
    lost = forgetting(planned, job, fitted, held)
    timed = dataclasses.replace(job, run=dataclasses.replace(job.run, objective=SFT()))  # rows as no objective shaped
    cost = costs(timed, fitted, study.timing)
    return Record(
        model=job.model,
        data=job.data.name,
        method=job.method.name,
        seed=job.seed,
        losses=fitted.losses,
        eval_losses=fitted.eval_losses,
        trainable=fitted.trainable,
        total=fitted.total,
        bytes=fitted.bytes,
        seconds=fitted.seconds,
        step_seconds=cost.seconds,
        step_ratio=cost.ratio,
        peak_bytes=cost.peak,
        forgetting=lost,
        intruders=intruders(job, fitted),
        settings=job.run.to_dict() | {"kind": job.method.kind, "lr": job.run.lr if fitted.trained else None},
        trials=trials,
        budget=job.method.budget,
        notes=[*job.method.notes, *job.data.notes],
        command=fitted.command or f"luthier compare {planned.folder / STUDY} --methods {job.method.name} --out STUDY",
        versions=versions() | _others(job),
        **{f.name: getattr(found, f.name) for f in dataclasses.fields(found)},
    )


def _others(job: Job) -> dict[str, str]:
    """Versions of what else took part."""
    import importlib.metadata

    return {"peft": importlib.metadata.version("peft")} if job.method.kind == "peft" else {}


def _tidy(planned: Plan, job: Job, keep_adapter: bool) -> None:
    """Removes what a finished run needs no more."""
    names = ("checkpoints",) if keep_adapter else ("checkpoints", "adapter")
    for folder in (*(job.run.folder / name for name in names), *place(planned.folder, job).glob("trial-*")):
        shutil.rmtree(folder, ignore_errors=True)


def write_report(folder: Path) -> Path:
    """Returns the HTML page of the study."""
    from luthier.comparing.report.page import write as page

    return page(folder)
