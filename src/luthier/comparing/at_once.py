"""Runs of a study that are trained at once: those of one base, over one copy of it in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import filelock

from luthier.comparing.fit import fit, fitted
from luthier.comparing.fitted import Fitted
from luthier.comparing.plan import Job, Plan
from luthier.comparing.record import Record
from luthier.comparing.tune import loss_of, next_trials, note, place, searches
from luthier.training.result import FAILURES
from luthier.training.together.meeting import Meeting, base_of, why_alone
from luthier.training.together.request import Alone
from luthier.training.together.runs import train_in

SHARED = "trained at once with other runs: its seconds are those of all"
Fits = Callable[[Job], Fitted]
Make = Callable[[Job, Fits], Record]
"""Makes a run, which is fitted as told, up to its record."""


def why(job: Job) -> str | None:
    """Returns why a run is trained by itself; None where it can meet others."""
    if job.method.kind == "luthier":
        return why_alone(job.run)
    return "nothing is trained" if job.method.kind == "untouched" else "it is the model of another library"


def groups(jobs: Sequence[Job], most: int) -> list[list[Job]]:
    """Returns the runs in order, in groups of at most `most` that can be trained at once."""
    found: list[list[Job]] = []
    filling: dict[Any, list[Job]] = {}
    for job in jobs:
        base = base_of(job.run) if most > 1 and why(job) is None else None
        group = filling.get(base)
        if base is None or group is None or len(group) == most:
            group = []
            found.append(group)
        if base is not None:
            filling[base] = group
        group.append(job)
    return found


def told(jobs: Sequence[Job]) -> list[str]:
    """Returns a line for each method whose runs are trained by themselves, with the reason."""
    reasons = {job.method.name: why(job) for job in jobs}
    return [f"{name} is trained by itself: {reason}" for name, reason in reasons.items() if reason]


def make_at_once(planned: Plan, jobs: Sequence[Job], make: Make) -> list[Record | Exception]:
    """Makes runs that can meet, searches for their settings included; returns their records, or why there is none.

    `Alone` stands for a run that turned out to have to be made by itself.
    """
    meeting = Meeting()
    fits = lambda job: fitted(job, partial(train_in, meeting))  # noqa: E731
    _tune(planned, jobs, meeting, fits)
    shared = [dataclasses.replace(job, method=_noted(job)) for job in jobs]
    return meeting.hold([partial(make, job, fits) for job in shared])


def _noted(job: Job) -> Any:
    return dataclasses.replace(job.method, notes=(*job.method.notes, SHARED))


def _tune(planned: Plan, jobs: Sequence[Job], meeting: Meeting, fits: Fits) -> None:
    """Makes the trials of all methods at once; where one fails, the run itself will tell why."""
    study, folder = planned.study, planned.folder
    left = {str(place(folder, job)): job for job in jobs if searches(study, job)}
    with ExitStack() as stack:
        for path in sorted(left):
            place(folder, left[path]).mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(f"{path}/.lock"))
        while ahead := [(path, *each) for path, job in left.items() for each in next_trials(study, folder, job)]:
            values = _losses([trial for _, _, trial in ahead], len(jobs), meeting, fits)
            for path, job in list(left.items()):
                own = [(chosen, value) for (of, chosen, _), value in zip(ahead, values, strict=True) if of == path]
                if any(isinstance(value, Exception) for _, value in own):
                    del left[path]
                elif own:
                    note(folder, job, [chosen | {"value": value} for chosen, value in own])


def _losses(trials: Sequence[Job], most: int, meeting: Meeting, fits: Fits) -> list[float | Exception | None]:
    found: list[float | Exception | None] = []
    for first in range(0, len(trials), most):
        some = trials[first : first + most]
        values = meeting.hold([partial(loss_of, trial, fits) for trial in some])
        found += [
            _loss_alone(trial) if isinstance(value, Alone) else value for trial, value in zip(some, values, strict=True)
        ]
    return found


def _loss_alone(trial: Job) -> float | Exception | None:
    try:
        return loss_of(trial, fit)
    except FAILURES as error:
        return error
