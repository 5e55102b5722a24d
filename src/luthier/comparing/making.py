"""The runs of a study: each made once, from its search for settings to its record, by whoever claimed it."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import filelock
from rich.console import Console

from luthier.comparing.at_once import Fits, groups, make_at_once, told
from luthier.comparing.fit import fit
from luthier.comparing.measured import record_of
from luthier.comparing.measures.foresight import foreseen
from luthier.comparing.plan import Job, Plan
from luthier.comparing.progress import Bar, shown
from luthier.comparing.record import FILE, Record, records, write
from luthier.comparing.rows import read_held
from luthier.comparing.tune import place, tuned
from luthier.core.errors import LuthierError
from luthier.core.guard import is_full
from luthier.data import Examples
from luthier.training.result import FAILURES
from luthier.training.together.request import Alone

PILOT = 2
"""Seeds after which it is told what the rest could show."""
WAIT = 5.0
"""Seconds between looks at runs that another process makes."""


def run_all(planned: Plan, console: Console, together: int = 1, bar: Bar | None = None) -> dict[str, str]:
    """Makes every run that is missing, so many at once; returns the reasons of those that failed, by title. It is told
    to `bar`, or shown on the console; who has a bar gives out runs one by one, and foretells by itself."""
    held, failed, foretold = read_held(planned.study), {}, bar is not None
    left = groups(planned.jobs, together)
    for line in told(planned.jobs) if together > 1 else ():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    with nullcontext(bar) if bar else shown(console, len(planned.jobs)) as bar:
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
                            tidy(planned, job, keep_adapter=True)  # what a kill right after the record left
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
                bar.note(f"{job.title} is made by itself: {result}")
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
    tidy(planned, job, study.keep_adapters)
    return record


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"


def _dir(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tidy(planned: Plan, job: Job, keep_adapter: bool) -> None:
    """Removes what a finished run needs no more."""
    names = ("checkpoints",) if keep_adapter else ("checkpoints", "adapter")
    for folder in (*(job.run.folder / name for name in names), *place(planned.folder, job).glob("trial-*")):
        shutil.rmtree(folder, ignore_errors=True)
