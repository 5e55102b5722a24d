"""Runs of a study that are given out to workers: the same records as one after another."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from luthier import models
from luthier.comparing.at_once import groups, told
from luthier.comparing.making import PILOT, foretell, run_all, tidy
from luthier.comparing.places import Place, Worker
from luthier.comparing.plan import Job, Plan, plan
from luthier.comparing.progress import Bar, shown
from luthier.comparing.record import FILE, read
from luthier.comparing.study import Study

TRIES = 3
"""How often the process of a run may be lost."""
BESIDE = "made beside other runs (jobs): its seconds and step times are those of a machine that was shared"


@dataclass(frozen=True)
class Making:
    """Makes some runs of a study in another process; returns the reasons of those that failed, by title."""

    study: str
    """As JSON."""
    folder: str
    titles: tuple[str, ...]
    trust: bool
    """Whether models may bring code, as here."""

    def __call__(self) -> dict[str, str]:
        with models.trusting(self.trust):
            planned = _planned(self.study, self.folder)
            jobs = [_noted(job) for job in planned.jobs if job.title in self.titles]
            return run_all(dataclasses.replace(planned, jobs=jobs), Console(stderr=True, quiet=True), len(jobs))


@lru_cache(maxsize=1)  # a worker makes many runs of one study
def _planned(study: str, folder: str) -> Plan:
    return plan(Study.from_dict(json.loads(study)), Path(folder))


def _noted(job: Job) -> Job:
    return dataclasses.replace(job, method=dataclasses.replace(job.method, notes=(*job.method.notes, BESIDE)))


def spread(planned: Plan, console: Console, place: Place, together: int = 1) -> dict[str, str]:
    """Gives every run that is missing to the workers of a place; returns the reasons of those that failed, by title."""
    left = deque(groups(planned.jobs, together))
    for line in told(planned.jobs) if together > 1 else ():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    with shown(console, len(planned.jobs)) as bar, place.opened():
        crew = [place.worker(number) for number in range(place.jobs)]
        try:
            return _given_out(planned, left, place, crew, bar)
        finally:
            for each in crew:
                each.close()


def _given_out(planned: Plan, left: deque[list[Job]], place: Place, crew: list[Worker], bar: Bar) -> dict[str, str]:
    failed: dict[str, str] = {}
    losses: Counter[str] = Counter()
    idle = list(range(len(crew)))
    running: dict[Future[dict[str, str]], tuple[int, list[Job]]] = {}
    later = any(_later(planned, job) for job in planned.jobs)
    while left or running:
        ahead = [job for group in (*left, *(group for _, group in running.values())) for job in group]
        if later and all(_later(planned, job) for job in ahead):
            foretell(planned, bar.console)
            later = False
        while left and idle:
            if group := _wanted(planned, left.popleft(), bar):
                number = idle.pop()
                running[_started(crew, number, place, _making(planned, group))] = number, group
        for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
            number, group = running.pop(future)
            idle.append(number)
            try:
                failed |= _ended(group, future.result(), bar)
            except place.lost as error:
                _replace(crew, number, place)
                failed |= _lost(group, error, losses, left, bar)
    return failed


def _later(planned: Plan, job: Job) -> bool:
    return job.seed in planned.study.seeds[PILOT:]


def _started(crew: list[Worker], number: int, place: Place, making: Making) -> Future[dict[str, str]]:
    try:
        return crew[number].submit(making)
    except place.lost:  # it was lost while it had nothing to do
        _replace(crew, number, place)
        return crew[number].submit(making)


def _replace(crew: list[Worker], number: int, place: Place) -> None:
    crew[number].close()
    crew[number] = place.worker(number)


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
    study = json.dumps(planned.study.to_dict())
    return Making(study, str(planned.folder.absolute()), tuple(job.title for job in group), models.trusted())


def _ended(group: list[Job], failed: dict[str, str], bar: Bar) -> dict[str, str]:
    for job in group:
        if job.title in failed:
            bar.failed(job.title, failed[job.title])
        else:
            bar.done(job.title, read(job.folder / FILE))
    return failed


def _lost(
    group: list[Job], error: BaseException, losses: Counter[str], left: deque[list[Job]], bar: Bar
) -> dict[str, str]:
    """Runs whose process is gone: they go on from their checkpoints elsewhere, unless that happened before."""
    title = group[0].title
    losses[title] += 1
    if losses[title] < TRIES:
        bar.console.print(f"{title}: its process is lost; it starts again.", highlight=False, soft_wrap=True)
        left.appendleft(group)
        return {}
    why = f"its process ended {TRIES} times, as when memory is short ({str(error) or type(error).__name__})"
    failed = {job.title: why for job in group if not job.done}
    return _ended([job for job in group if not job.done], failed, bar)
