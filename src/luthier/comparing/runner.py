"""The function `compare`: it runs a study from its plan to its report, and resumes after interruptions."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
from rich.console import Console

from luthier.comparing.at_once import Fits, groups, make_at_once, told
from luthier.comparing.fit import fit
from luthier.comparing.folder import prepared
from luthier.comparing.measured import record_of
from luthier.comparing.measures.foresight import foreseen
from luthier.comparing.plan import Job, Plan
from luthier.comparing.progress import Bar, shown
from luthier.comparing.record import FILE, Record, records, write
from luthier.comparing.report import latex, markdown
from luthier.comparing.report.table import save
from luthier.comparing.rows import read_held
from luthier.comparing.study import Study, label, read_study
from luthier.comparing.tune import place, tuned
from luthier.comparing.until import add_seeds, looks_of
from luthier.core.contracts.component import check_type
from luthier.core.errors import LuthierError
from luthier.core.guard import is_full, on_disk
from luthier.core.notebook import table
from luthier.core.paths import path_of
from luthier.data import Examples
from luthier.training.report import resolved_settings
from luthier.training.result import FAILURES
from luthier.training.together.request import Alone

PILOT = 2
"""Seeds after which it is told what the rest could show."""
WAIT = 5.0
"""Seconds between looks at runs that another process makes."""


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
    together: int = 1,
    progress: bool = True,
) -> Comparison:
    """Runs a study in the folder `out`, or resumes the one there, and writes its report.

    `study` is a `Study` or a file that holds one (see `luthier.comparing.study`); with `data`, it is a model to
    compare methods on. What else is given goes before what the study says; `seeds` are a number of them or a list.
    With `until_told`, a margin of the score, seeds are added until every two methods are told apart or shown to differ
    by less, at most `most_seeds` and for at most that many `hours`. `together` runs of one base are trained at once, in
    passes that they share over one copy of it; what cannot share them is told and made by itself.
    Runs that are finished are not repeated; runs that another process is making are left to it, and a run that
    diverges or finds no memory does not stop the others.

    Raises `LuthierError` before the first run for all that does not fit, and for a folder that holds another study;
    after the last one, for those that failed.
    """
    check_type("data", data, str | None)  # a Path there is most likely the folder, which is `out`
    given = {"methods": methods, "seeds": seeds, "budget": budget, "training": training, "held": held}
    given |= {"tune": tune, "tune_steps": tune_steps}
    given |= {"until_told": until_told, "most_seeds": most_seeds, "hours": hours}
    return carry_out(
        study_of(study, data, test, {k: v for k, v in given.items() if v is not None}), out, progress, together
    )


def carry_out(study: Study, out: str | Path, progress: bool, together: int = 1) -> Comparison:
    """Returns `compare`, for a study that is made."""
    if together < 1:
        raise LuthierError(f"together is {together}; expected the number of runs to train at once, at least 1.")
    with on_disk(str(out), "Then start it again: the study goes on.", full_alone=True):
        return _carried_out(study, out, progress, together)


def _carried_out(study: Study, out: str | Path, progress: bool, together: int) -> Comparison:
    folder, started = path_of(out), time.monotonic()
    planned = prepared(study, folder)
    console = Console(stderr=True, quiet=not progress)
    for note in dict.fromkeys(note for each in planned.data.values() for note in each.notes):
        console.print(note, highlight=False)
    runs = partial(run_all, together=together)
    for line in taken(planned):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if study.until_told is not None:
        looks_of(study, folder)
    failed = runs(planned, console)
    if study.until_told is not None:
        failed |= add_seeds(planned, console, runs, started)
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


def run_all(planned: Plan, console: Console, together: int = 1) -> dict[str, str]:
    """Makes every run that is missing, so many at once; returns the reasons of those that failed, by title."""
    held, failed, foretold = read_held(planned.study), {}, False
    left = groups(planned.jobs, together)
    for line in told(planned.jobs) if together > 1 else ():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    with shown(console, len(planned.jobs)) as bar:
        while left:
            later = []
            for group in left:
                if not foretold and any(job.seed in planned.study.seeds[PILOT:] for job in group):
                    foretell(planned, console)
                    foretold = True
                with ExitStack() as stack:
                    ours = {job.title: stack.enter_context(claimed(job)) for job in group}
                    for job in group:
                        if job.done:
                            _tidy(planned, job, keep_adapter=True)  # what a kill right after the record left
                            bar.skip()
                    wanted = [job for job in group if not job.done]
                    later += [[job] for job in wanted if not ours[job.title]]
                    failed |= _made(planned, [job for job in wanted if ours[job.title]], held, bar)
            if len(later) == len(left):
                bar.wait(later[0][0].title)
                time.sleep(WAIT)
            left = later
    return failed


def _made(planned: Plan, group: Sequence[Job], held: Examples | None, bar: Bar) -> dict[str, str]:
    """Makes the runs of a group at once; returns the reasons of those that failed, by title."""
    failed: dict[str, str] = {}

    def ended(job: Job, made: Callable[[], Record]) -> Record:
        record = made()
        bar.done(job.title, record)
        return record

    left = list(group)
    if len(group) > 1:
        bar.start(f"{len(group)} runs at once")
        make_one = lambda job, fits: ended(job, partial(make, planned, job, held, fits))  # noqa: E731
        found = make_at_once(planned, group, make_one)
        left = [job for job, result in zip(group, found, strict=True) if isinstance(result, Alone)]
        for job, result in zip(group, found, strict=True):
            if isinstance(result, Exception) and is_full(result):  # the other runs would fail as well
                raise result
            if isinstance(result, Alone):
                bar.console.print(f"{job.title} is made by itself: {result}", highlight=False, soft_wrap=True)
            elif isinstance(result, FAILURES):
                failed[job.title] = _told(result)
                bar.failed(job.title, failed[job.title])
            elif isinstance(result, Exception):
                raise result
        found = result = None  # what failed holds its trainer and the base, while others are made by themselves
        gc.collect()
    for job in left:
        bar.start(job.title)
        try:
            ended(job, partial(make, planned, job, held))
        except FAILURES as error:
            if is_full(error):
                raise
            failed[job.title] = _told(error)
            bar.failed(job.title, failed[job.title])
        gc.collect()  # what a failed run leaves in memory, once its traceback is gone
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


def make(planned: Plan, job: Job, held: Examples | None, fits: Fits | None = None) -> Record:
    """One run, from its search for a learning rate to its record on disk; `fits` trains it otherwise than alone."""
    study = planned.study
    with filelock.FileLock(_dir(place(planned.folder, job)) / ".lock"):
        chosen, trials = tuned(study, planned.folder, job)
    fitted = (fits or fit)(chosen)
    record = record_of(planned, chosen, fitted, held, trials)
    write(record.to_dict(), job.folder / FILE)
    _tidy(planned, job, study.keep_adapters)
    return record


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"


def _dir(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tidy(planned: Plan, job: Job, keep_adapter: bool) -> None:
    """Removes what a finished run needs no more."""
    names = ("checkpoints",) if keep_adapter else ("checkpoints", "adapter")
    for folder in (*(job.run.folder / name for name in names), *place(planned.folder, job).glob("trial-*")):
        shutil.rmtree(folder, ignore_errors=True)


def write_report(folder: Path) -> Path:
    """Returns the HTML page of the study."""
    from luthier.comparing.report.page import write as page

    return page(folder)
