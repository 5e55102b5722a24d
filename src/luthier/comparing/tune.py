"""The search for a method's settings: equal trials for every method, on the validation part, by Optuna.

Searched are the learning rate, the rank where no budget fixes it, and the positions of an edit that has some.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

from luthier.comparing.fit import fit
from luthier.comparing.plan import Job, file_name
from luthier.comparing.record import write
from luthier.comparing.study import Study
from luthier.core.errors import LuthierError
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
    if not study.tune or job.method.kind == "untouched":
        return job, []
    searched, kept = space(job.run), place(folder, job)
    trials: list[Trial] = json.loads((kept / FILE).read_text(encoding="utf-8")) if (kept / FILE).is_file() else []
    while len(trials) < study.tune:
        chosen = propose(trials, job.run.lr, searched)
        trials.append(chosen | {"value": _loss(_trial(study, job, chosen, kept / f"trial-{len(trials)}"))})
        write(trials, kept / FILE)
        shutil.rmtree(kept / f"trial-{len(trials) - 1}", ignore_errors=True)
    best = best_of(trials, job.title)
    return dataclasses.replace(job, run=_at(job.run, best)), trials


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


def _loss(job: Job) -> float | None:
    """The last loss on the validation part; None where training stopped because the loss was not finite."""
    try:
        fitted = fit(job)
    except Diverged:
        return None
    value = fitted.eval_losses[-1][1]
    return value if math.isfinite(value) else None
