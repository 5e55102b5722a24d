"""`compare`: a study from its plan to its report, over any number of interruptions."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from rich.console import Console

from luthier.comparing.costs import costs
from luthier.comparing.fit import Fitted, fit
from luthier.comparing.forgetting import forgetting, read_held
from luthier.comparing.plan import Job, Plan, plan
from luthier.comparing.progress import shown
from luthier.comparing.record import FILE, Record, write
from luthier.comparing.scores import tested
from luthier.comparing.study import Study, label, read_study
from luthier.comparing.table import save
from luthier.comparing.tune import check_tuning, place, tuned
from luthier.core.errors import LuthierError
from luthier.data import Examples
from luthier.training.folder import versions

STUDY = "study.json"
FREE = ("models", "data", "methods", "seeds", "settings", "timing", "batch", "keep_adapters")
"""Parts of a study that may differ when it goes on: what is new is added, what is done stays."""
WAIT = 5.0
"""Seconds between looks at runs that another process makes."""


@dataclass(frozen=True)
class Comparison:
    """A study that has run."""

    folder: Path
    records: list[Record]
    report: Path | None
    """The page; None where no report can be written."""


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
    progress: bool = True,
) -> Comparison:
    """Runs a study in the folder `out`, or goes on with the one there, and reports on it.

    `study` is a `Study` or a file that holds one (see `luthier.comparing.study`); with `data`, it is a model to
    compare methods on. What else is given goes before what the study says; `seeds` are a number of them or a list.
    Runs that are finished are not made again; runs that another process is making are left to it, and a run that
    diverges does not stop the others.

    Raises `LuthierError` before the first run for all that does not fit, and for a folder that holds another study;
    after the last one, for those that failed.
    """
    given = {"methods": methods, "seeds": seeds, "budget": budget, "training": training, "held": held}
    given |= {"tune": tune, "tune_steps": tune_steps}
    return carry_out(study_of(study, data, test, {k: v for k, v in given.items() if v is not None}), out, progress)


def carry_out(study: Study, out: str | Path, progress: bool) -> Comparison:
    """`compare`, for a study that is made."""
    folder = Path(out).expanduser()
    planned = prepared(study, folder)
    failed = run_all(planned, Console(stderr=True, quiet=not progress))
    found = save(folder)
    report = write_report(folder) if found else None
    if failed:
        listed = "".join(f"\n  {title}: {reason}" for title, reason in failed.items())
        raise LuthierError(f"{len(failed)} of {len(planned.jobs)} runs failed; {folder} holds the others:{listed}")
    return Comparison(folder, found, report)


def study_of(
    study: Study | str | Path,
    data: str | None,
    test: str | None,
    given: dict[str, Any],
    dataset: Mapping[str, Any] | None = None,
) -> Study:
    """The study that the arguments describe; `dataset` holds further entries of the one data set."""
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


# --- the folder ------------------------------------------------------------------------------------


def prepared(study: Study, folder: Path) -> Plan:
    """The plan, checked against what the folder holds, and noted there."""
    if folder.is_file() or (folder.is_dir() and not _ours(folder)):
        raise LuthierError(f"{folder} holds something else than a study; choose another folder (out).")
    old = _stored(folder)
    if old is not None:
        _refuse_changed(folder, old, study, {})
    check_tuning(study)
    read_held(study)
    planned = plan(study, folder)
    prints = {name: each.fingerprints() for name, each in planned.data.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        old = _stored(folder)
        if old is not None:
            _refuse_changed(folder, old, study, prints)
        write(_noted(study, old, prints), folder / STUDY)
    return planned


def _ours(folder: Path) -> bool:
    """Whether a folder is a study's, or as good as empty."""
    known = {STUDY, ".lock", "data"}
    return (folder / STUDY).is_file() or all(path.name in known for path in folder.iterdir())


def _stored(folder: Path) -> dict[str, Any] | None:
    path = folder / STUDY
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        Study.from_dict(found["study"])
    except (ValueError, KeyError, TypeError) as error:
        raise LuthierError(f"{path} is no study: {error}.") from None
    return found


def _refuse_changed(folder: Path, old: dict[str, Any], study: Study, prints: dict[str, Any]) -> None:
    """Raises unless both studies are the same where they overlap."""
    there, here = old["study"], json.loads(json.dumps(study.to_dict()))
    found = [_difference(key, here[key], there.get(key)) for key in here if key not in FREE]
    for key in ("models", "data", "settings"):
        found += [
            _difference(f"{key}.{name}", value, there[key][name])
            for name, value in here[key].items()
            if name in there[key]
        ]
    found += [
        _difference(f"settings.{name}", here["settings"].get(name), there["settings"].get(name))
        for name in here["methods"]
        if name in there["methods"] and (name in here["settings"]) != (name in there["settings"])
    ]
    found += [
        _difference(f"the rows of {name} ({part})", value, old["fingerprints"].get(name, {}).get(part, value))
        for name, parts in prints.items()
        for part, value in parts.items()
    ]
    changed = [text for text in found if text]
    if changed:
        raise LuthierError(
            f"{folder} holds a study with other settings: {'; '.join(changed)}. Give those, or another folder (out)."
        )


def _difference(name: str, here: Any, there: Any) -> str:
    """What differs; nothing where nothing does."""
    if isinstance(here, dict) and isinstance(there, dict):
        inner = [_difference(f"{name}.{key}", here.get(key), there.get(key)) for key in {**here, **there}]
        return "; ".join(text for text in inner if text)
    return "" if here == there else f"{name} is {here!r}, there {there!r}"


def _noted(study: Study, old: dict[str, Any] | None, prints: dict[str, Any]) -> dict[str, Any]:
    """What study.json holds: all that was ever asked of this folder."""
    new = study.to_dict()
    before = old["study"] if old else {}
    for key in ("models", "data", "settings"):
        new[key] = before.get(key, {}) | new[key]
    for key in ("methods", "seeds"):
        new[key] = list(dict.fromkeys([*before.get(key, []), *new[key]]))
    return {
        "study": new,
        "fingerprints": (old or {}).get("fingerprints", {}) | prints,
        "command": (old or {}).get("command") or command(),
        "versions": versions(),
        "created": (old or {}).get("created")
        or datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def command() -> str:
    """The command line that is running, or how Python was asked."""
    import shlex

    return shlex.join(["luthier", *sys.argv[1:]]) if sys.argv[1:2] == ["compare"] else "luthier.compare(…)"


# --- runs ------------------------------------------------------------------------------------------


def run_all(planned: Plan, console: Console) -> dict[str, str]:
    """Makes every run that is missing; returns the reasons of those that failed, by title."""
    held, failed = read_held(planned.study), {}
    left = list(planned.jobs)
    with shown(console, len(left)) as bar:
        while left:
            later = []
            for job in left:
                with claimed(job) as ours:
                    if job.done:
                        bar.skip()
                    elif not ours:
                        later.append(job)
                    else:
                        bar.start(job.title)
                        try:
                            bar.done(job.title, make(planned, job, held))
                        except LuthierError as error:
                            failed[job.title] = str(error)
                            bar.failed(job.title, str(error))
            if len(later) == len(left):
                bar.wait(later[0].title)
                time.sleep(WAIT)
            left = later
    return failed


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
    _tidy(job, study.keep_adapters)
    del fitted
    gc.collect()
    return record


def _dir(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def record_of(planned: Plan, job: Job, fitted: Fitted, held: Examples | None, trials: list[dict[str, Any]]) -> Record:
    """Everything that is measured of a fitted model."""
    study = planned.study
    found = tested(study, job, fitted)
    lost = forgetting(planned, job, fitted, held)
    cost = costs(job, fitted, study.timing)
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
        settings=job.run.to_dict() | {"kind": job.method.kind, "lr": job.run.lr if fitted.trained else None},
        trials=trials,
        budget=job.method.budget,
        notes=list(job.method.notes),
        command=fitted.command or f"luthier compare {planned.folder / STUDY} --methods {job.method.name} --out STUDY",
        versions=versions() | _others(job),
        **{f.name: getattr(found, f.name) for f in dataclasses.fields(found)},
    )


def _others(job: Job) -> dict[str, str]:
    """Versions of what else took part."""
    import importlib.metadata

    return {"peft": importlib.metadata.version("peft")} if job.method.kind == "peft" else {}


def _tidy(job: Job, keep_adapters: bool) -> None:
    """Removes what a finished run needs no more."""
    shutil.rmtree(job.run.folder / "checkpoints", ignore_errors=True)
    if not keep_adapters:
        shutil.rmtree(job.run.folder / "adapter", ignore_errors=True)


def write_report(folder: Path) -> Path:
    """The HTML page of the study."""
    from luthier.comparing.report import write as page

    return page(folder)
