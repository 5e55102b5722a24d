"""More seeds for a study, until its methods are told apart or shown level, or seeds or hours are spent."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from luthier.comparing.folder import prepared
from luthier.comparing.measures.looks import FILE, Decision, Looks, decisions, wanting
from luthier.comparing.plan import Plan
from luthier.comparing.record import records, write
from luthier.comparing.study import Study
from luthier.core.errors import LuthierError
from luthier.core.records import recorded


def add_seeds(
    planned: Plan, console: Console, run_all: Callable[[Plan, Console], dict[str, str]], started: float
) -> dict[str, str]:
    """Runs further seeds of the methods that no look has told yet; returns the reasons of runs that failed, by title.

    `started` is when the study began, by `time.monotonic`, from which its hours count. What was decided goes to
    `until.json` after every look. Raises `LuthierError` where that file is of other looks or another margin, which
    may not change once something was looked at.
    """
    study, failed = planned.study, {}
    looks = looks_of(study, planned.folder)
    while True:
        found = _look(study, planned.folder, looks)
        wanted = wanting(found)
        if not wanted or len(study.seeds) >= looks.last or _over(study, started):
            _tell(console, found, looks, wanted)
            return failed
        study = dataclasses.replace(study, seeds=[*study.seeds, max(study.seeds) + 1])
        planned = prepared(study, planned.folder)
        jobs = [job for job in planned.jobs if (job.model, job.data.name, job.method.name) in wanted]
        failed |= run_all(dataclasses.replace(planned, jobs=jobs), console)


def looks_of(study: Study, folder: Path) -> Looks:
    """Returns when this study is looked at, as it was settled the first time."""
    if not (folder / FILE).is_file():
        return Looks(max(2, len(study.seeds)), study.most_seeds)
    with recorded(folder / FILE) as there:
        if (there["margin"], there["looks"]["last"]) != (study.until_told, study.most_seeds):
            raise LuthierError(
                f"{folder} was looked at with the margin {there['margin']} and at most {there['looks']['last']} seeds; "
                f"here they are {study.until_told} and {study.most_seeds}. Give those: a rule that changes once "
                "something was seen does not keep its error rate."
            )
        return Looks(**there["looks"])


def _over(study: Study, started: float) -> bool:
    return study.hours is not None and time.monotonic() - started >= study.hours * 3600


def _look(study: Study, folder: Path, looks: Looks) -> list[Decision]:
    assert study.until_told is not None
    ours = {(model, data, method) for model, data in study.pairs() for method in study.methods}
    runs = [run for run in records(folder) if (run.model, run.data, run.method) in ours and run.seed in study.seeds]
    found = decisions(runs, study.until_told, looks)
    told = [dataclasses.asdict(each) for each in found]
    write({"margin": study.until_told, "looks": dataclasses.asdict(looks), "decisions": told}, folder / FILE)
    return found


def _tell(console: Console, found: Sequence[Decision], looks: Looks, wanted: set[tuple[str, str, str]]) -> None:
    for line in map(str, found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if wanted:
        names = ", ".join(sorted({method for _, _, method in wanted}))
        console.print(f"stopped before all were told ({names}): at most {looks.last} seeds, or the hours, are spent.")
