"""Runs of a study that are given out to workers: the same records as one after another."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from luthier import models
from luthier.comparing.at_once import groups, told
from luthier.comparing.making import PILOT, foretell, run_all, tidy
from luthier.comparing.places import Made, Place
from luthier.comparing.plan import Job, Plan, plan
from luthier.comparing.progress import Bar, Noting, shown
from luthier.comparing.record import FILE, read
from luthier.comparing.study import Study

TRIES = 3
"""How often the process of a run may be lost."""
BESIDE = "made beside other runs (jobs, ray): its seconds and step times are those of a machine that may be shared"


@dataclass(frozen=True)
class Making:
    """Makes some runs of a study in another process; returns the reasons of those that failed, by title."""

    study: Study
    folder: Path
    titles: tuple[str, ...]
    trust: bool
    """Whether models may bring code, as here."""

    def __call__(self) -> Made:
        with models.trusting(self.trust):
            planned = _planned(self.study, self.folder)
            jobs = [_noted(job) for job in planned.jobs if job.title in self.titles]
            bar = Noting(Console(stderr=True, quiet=True), len(jobs), None)
            return run_all(dataclasses.replace(planned, jobs=jobs), bar.console, len(jobs), bar), bar.notes


_last: list[Plan] = []
"""The plan of this process: a worker makes many runs of one study."""


def _planned(study: Study, folder: Path) -> Plan:
    if not _last or (_last[0].study, _last[0].folder) != (study, folder):
        _last[:] = [plan(study, folder)]
    return _last[0]


def _noted(job: Job) -> Job:
    return dataclasses.replace(job, method=dataclasses.replace(job.method, notes=(*job.method.notes, BESIDE)))


def spread(planned: Plan, console: Console, place: Place, together: int = 1) -> dict[str, str]:
    """Gives every run that is missing to the workers of a place, which is open; returns the reasons of those that
    failed, by title."""
    left = deque(groups(planned.jobs, together))
    for line in told(planned.jobs) if together > 1 else ():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    with shown(console, len(planned.jobs)) as bar:
        return _given_out(planned, left, place, bar)


def _given_out(planned: Plan, left: deque[list[Job]], place: Place, bar: Bar) -> dict[str, str]:
    failed: dict[str, str] = {}
    losses: Counter[str] = Counter()
    idle = list(range(place.jobs))
    running: dict[Future[Made], tuple[int, list[Job]]] = {}
    later = any(_later(planned, job) for job in planned.jobs)
    while left or running:
        ahead = [job for group in (*left, *(group for _, group in running.values())) for job in group]
        if later and all(_later(planned, job) for job in ahead):
            foretell(planned, bar.console)
            later = False
        while left and idle:
            if group := _wanted(planned, left.popleft(), bar):
                number = idle.pop()
                running[place.submit(number, _making(planned, group))] = number, group
        for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
            number, group = running.pop(future)
            idle.append(number)
            try:
                reasons, notes = future.result()
                for note in notes:
                    bar.note(note)
                failed |= _ended(group, reasons, bar)
            except place.lost as error:
                failed |= _lost(group, place.why_lost(number, error), losses, left, bar)
    return failed


def _later(planned: Plan, job: Job) -> bool:
    return job.seed in planned.study.seeds[PILOT:]


def _wanted(planned: Plan, group: list[Job], bar: Bar) -> list[Job]:
    """The runs of a group that are not there."""
    for job in group:
        if job.done:
            tidy(planned, job, keep_adapter=True)
            bar.skip()
    wanted = [job for job in group if not job.done]
    if wanted:
        bar.start(wanted[0].title)
    return wanted


def _making(planned: Plan, group: list[Job]) -> Making:
    return Making(planned.study, planned.folder.absolute(), tuple(job.title for job in group), models.trusted())


def _ended(group: list[Job], failed: dict[str, str], bar: Bar) -> dict[str, str]:
    for job in group:
        if job.title in failed:
            bar.failed(job.title, failed[job.title])
        else:
            bar.done(job.title, read(job.folder / FILE))
    return failed


def _lost(group: list[Job], why: str, losses: Counter[str], left: deque[list[Job]], bar: Bar) -> dict[str, str]:
    """Runs whose process is gone: they go on from their checkpoints elsewhere, unless that happened before."""
    title = group[0].title
    losses[title] += 1
    if losses[title] < TRIES:
        bar.note(f"{title}: its process is lost; it starts again.")
        left.appendleft(group)
        return {}
    failed = {job.title: f"{why}, {TRIES} times" for job in group if not job.done}
    return _ended([job for job in group if not job.done], failed, bar)
