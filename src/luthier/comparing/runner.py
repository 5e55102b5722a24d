"""The function `compare`: it runs a study from its plan to its report, and resumes after interruptions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier.comparing.folder import prepared
from luthier.comparing.making import run_all
from luthier.comparing.places import Cluster, Machine, Place
from luthier.comparing.plan import Plan
from luthier.comparing.record import Record
from luthier.comparing.report import latex, markdown
from luthier.comparing.report.table import save
from luthier.comparing.spread import spread
from luthier.comparing.study import Study, label, read_study
from luthier.comparing.until import add_seeds, looks_of
from luthier.core.contracts.component import check_type
from luthier.core.errors import LuthierError
from luthier.core.guard import on_disk
from luthier.core.notebook import table
from luthier.core.paths import path_of
from luthier.core.storage.folder import checks_adapters
from luthier.training.report import resolved_settings


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
    jobs: int | None = None,
    ray: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Runs a study in the folder `out`, or resumes the one there, and writes its report.

    `study` is a `Study` or a file that holds one (see `luthier.comparing.study`); with `data`, it is a model to
    compare methods on. What else is given goes before what the study says; `seeds` are a number of them or a list.
    With `until_told`, a margin of the score, seeds are added until every two methods are told apart or shown to differ
    by less, at most `most_seeds` and for at most that many `hours`. `together` runs of one base are trained at once, in
    passes that they share over one copy of it; what cannot share them is told and made by itself.
    `jobs` runs are made side by side, each in a process with its share of the cores; with `ray`, the address of a Ray
    cluster (`local` starts one here), on its nodes. A run whose process is lost starts again elsewhere. The processes
    import the script that calls this, which has to do so below `if __name__ == "__main__":`.
    Runs that are finished are not repeated; runs that another process is making are left to it, and a run that
    diverges or finds no memory does not stop the others.

    Raises `LuthierError` before the first run for all that does not fit, and for a folder that holds another study;
    after the last one, for those that failed.
    """
    check_type("data", data, str | None)  # a Path there is most likely the folder, which is `out`
    given = {"methods": methods, "seeds": seeds, "budget": budget, "training": training, "held": held}
    given |= {"tune": tune, "tune_steps": tune_steps}
    given |= {"until_told": until_told, "most_seeds": most_seeds, "hours": hours}
    made = study_of(study, data, test, {k: v for k, v in given.items() if v is not None})
    return carry_out(made, out, progress, together, place_of(jobs, ray))


def place_of(jobs: int | None, ray: str | None) -> Place | None:
    """Returns where runs are made side by side; None where they are made here, one after another."""
    if jobs is not None and jobs < 1:
        raise LuthierError(f"jobs is {jobs}; expected the number of runs to make side by side, at least 1.")
    if (ray is not None or (jobs or 1) > 1) and checks_adapters():
        raise LuthierError("signatures are required by this process alone; leave jobs and ray out.")
    if ray is not None:
        return Cluster(ray, jobs)
    return Machine(jobs) if jobs is not None and jobs > 1 else None


def carry_out(
    study: Study, out: str | Path, progress: bool, together: int = 1, place: Place | None = None
) -> Comparison:
    """Returns `compare`, for a study that is made."""
    if together < 1:
        raise LuthierError(f"together is {together}; expected the number of runs to train at once, at least 1.")
    with on_disk(str(out), "Then start it again: the study goes on.", full_alone=True):
        return _carried_out(study, out, progress, together, place)


def _carried_out(study: Study, out: str | Path, progress: bool, together: int, place: Place | None) -> Comparison:
    folder, started = path_of(out), time.monotonic()
    planned = prepared(study, folder)
    console = Console(stderr=True, quiet=not progress)
    for note in dict.fromkeys(note for each in planned.data.values() for note in each.notes):
        console.print(note, highlight=False)
    runs = partial(spread, place=place, together=together) if place else partial(run_all, together=together)
    for line in taken(planned):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if study.until_told is not None:
        looks_of(study, folder)
    with place.opened() if place else nullcontext():
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


def write_report(folder: Path) -> Path:
    """Returns the HTML page of the study."""
    from luthier.comparing.report.page import write as page

    return page(folder)
