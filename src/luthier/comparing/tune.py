"""The search for a method's settings: equal trials for every method, on the validation part, by Optuna.

Searched are the learning rate, the rank where no budget fixes it, and the positions of an edit that has some.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.comparing.fit import fit
from luthier.comparing.fitted import Fitted
from luthier.comparing.plan import Job, file_name
from luthier.comparing.record import write
from luthier.comparing.study import Study
from luthier.core.errors import LuthierError
from luthier.core.records import recorded
from luthier.training.spec import Run
from luthier.training.trainer import Diverged

FOLDER, FILE = "tuning", "trials.json"
REACH = 10.0
"""The search for a rate goes from a method's own divided by this to that times it."""
OPENING = (1.0, 10**0.5)
UPWARD, DOWNWARD = (10.0, 10**-0.5), (10**-0.5, 0.1)
"""Shares of the method's own rate that are tried first, all else being its own: it and 3.2 times it (a recipe's rate is
meant for longer runs than most studies afford), then two on the side of the better. After these Optuna's estimator
(TPE) chooses."""
RANKS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Ranks that are tried, as shares of the method's own."""
POSITIONS = ("f1+l1", "f3+l3", "f5+l5", "f7+l7")
"""Positions that are tried beside the method's own: prefixes and suffixes of equal length, as in ReFT's own search."""
Trial = dict[str, Any]
"""Settings and, once it has run, their `value`."""
Space = dict[str, tuple[Any, ...]]


def check_tuning(study: Study) -> None:
    """Raises where trials are asked for and Optuna is not there."""
    if study.tune and importlib.util.find_spec("optuna") is None:
        raise LuthierError("tune searches with Optuna: pip install 'luthier[tune]'.")


def place(study_folder: Path, job: Job) -> Path:
    """Where the trials of a job's method are kept; all its seeds share them."""
    return study_folder / FOLDER / job.model / job.data.name / file_name(job.method.name)


def tuned(study: Study, folder: Path, job: Job) -> tuple[Job, list[Trial]]:
    """Returns the job at the settings with the lowest validation loss, and the trials.

    All trials are with seed 0, whatever the job's. The first is the method as it is. What each later one tries
    follows from those before it alone, so a search that was killed goes on as if it had not been.
    """
    if not searches(study, job):
        return job, []
    while ahead := next_trials(study, folder, job):
        chosen, trial = ahead[0]
        note(folder, job, [chosen | {"value": loss_of(trial, fit)}])
    trials = made(folder, job)
    return dataclasses.replace(job, run=_at(job.run, best_of(trials, job.title))), trials


def searches(study: Study, job: Job) -> bool:
    """Whether trials are made for a job."""
    return bool(study.tune) and job.method.kind != "untouched"


def made(folder: Path, job: Job) -> list[Trial]:
    """Returns the trials of a job's method that have been made."""
    file = place(folder, job) / FILE
    if not file.is_file():
        return []
    with recorded(file) as trials:
        return [{**trial, "value": trial["value"]} for trial in trials]


def next_trials(study: Study, folder: Path, job: Job) -> list[tuple[Trial, Job]]:
    """Returns the trials that are next, each with its run: of the rates that open, the two that depend on no other's
    result; then one at a time; none when all are made."""
    trials, searched, kept = made(folder, job), space(job.run), place(folder, job)
    count = 2 - len(trials) % 2 if len(trials) < len(OPENING) + len(UPWARD) else 1
    found = []
    for number in range(len(trials), min(len(trials) + count, study.tune)):
        unknown: list[Trial] = [{"value": None}] * (number - len(trials))
        chosen = propose([*trials, *unknown], job.run.lr, searched)
        found.append((chosen, _trial(study, job, chosen, kept / f"trial-{number}")))
    return found


def note(folder: Path, job: Job, trials: list[Trial]) -> None:
    """Keeps trials that were made just now, behind those that are there; what they left on disk goes."""
    kept, known = place(folder, job), made(folder, job)
    write([*known, *trials], kept / FILE)
    for number in range(len(known), len(known) + len(trials)):
        shutil.rmtree(kept / f"trial-{number}", ignore_errors=True)


def space(run: Run) -> Space:
    """What is tried beside learning rates, by setting of the form: the method's own value first."""
    form, found = run.form, {}
    if "rank" in form.settings() and run.budget is None and run.ranks is None:
        own = form.to_dict()["rank"]
        found["rank"] = (own, *(rank for share in RANKS if (rank := round(own * share)) not in (0, own)))
    if form.positions != "all":
        found["positions"] = (form.positions, *(each for each in POSITIONS if each != form.positions))
    return found


def propose(trials: list[Trial], own: float, searched: Space, seed: int = 0) -> Trial:
    """Returns what to try after `trials`: first the learning rates that open, then what Optuna's estimator asks for."""
    import optuna

    opening = OPENING + (UPWARD if _rises(trials) else DOWNWARD)
    if len(trials) < len(opening):
        return {"lr": own * opening[len(trials)]} | {name: values[0] for name, values in searched.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space: dict[str, Any] = {"lr": optuna.distributions.FloatDistribution(own / REACH, own * REACH, log=True)}
    space |= {name: optuna.distributions.CategoricalDistribution(values) for name, values in searched.items()}
    sampler = optuna.samplers.TPESampler(seed=seed + len(trials), n_startup_trials=len(opening))
    search = optuna.create_study(sampler=sampler)
    finite = [trial["value"] for trial in trials if trial["value"] is not None]
    worst = max(finite, default=0.0) + 1.0  # settings that diverged are worse than any that did not
    for trial in trials:
        value = worst if trial["value"] is None else trial["value"]
        params = {name: trial[name] for name in space}
        search.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
    return search.ask(space).params


def _rises(trials: list[Trial]) -> bool:
    """Whether the second rate, the higher one, did better than the first."""
    first, second = ([math.inf if each["value"] is None else each["value"] for each in trials[:2]] + [math.inf] * 2)[:2]
    return second < first


def best_of(trials: list[Trial], title: str) -> Trial:
    """Returns the trial of the lowest loss; of several, the first."""
    good = [trial for trial in trials if trial["value"] is not None]
    if not good:
        raise LuthierError(f"{title}: the loss diverged at every learning rate that was tried.")
    return min(good, key=lambda trial: trial["value"])


def _trial(study: Study, job: Job, chosen: Trial, out: Path) -> Job:
    run = _at(job.run, chosen)
    steps = study.tune_steps if study.tune_steps is not None else run.training.steps
    training = dataclasses.replace(run.training, steps=steps, seed=0)
    return dataclasses.replace(job, seed=0, run=dataclasses.replace(run, training=training, out=str(out)))


def _at(run: Run, chosen: Trial) -> Run:
    """The run at a trial's settings."""
    form = run.form
    if "rank" in chosen:
        form = form.with_rank(chosen["rank"])
    if "positions" in chosen:
        form = dataclasses.replace(form, positions=chosen["positions"])
    return dataclasses.replace(run, form=form, training=dataclasses.replace(run.training, lr=chosen["lr"]))


def loss_of(job: Job, fits: Callable[[Job], Fitted]) -> float | None:
    """The last loss on the validation part; None where training stopped because the loss was not finite."""
    try:
        found = fits(job)
    except Diverged:
        return None
    value = found.eval_losses[-1][1]
    return value if math.isfinite(value) else None
