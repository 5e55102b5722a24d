"""The search for a learning rate: equal trials for every method, on the validation part, by Optuna."""

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
"""The search goes from a method's own rate divided by this to that times it."""
OPENING = (1.0, 10**0.5, 10.0, 10**-0.5)
"""Shares of the method's own rate that are tried first. A recipe's rate is meant for longer runs than most studies
afford, so higher ones come before lower ones; after these the estimator of Optuna (TPE) chooses."""
Trial = dict[str, Any]


def check_tuning(study: Study) -> None:
    """Raises where trials are asked for and Optuna is not there."""
    if study.tune and importlib.util.find_spec("optuna") is None:
        raise LuthierError("tune searches with Optuna: pip install 'luthier[tune]'.")


def place(study_folder: Path, job: Job) -> Path:
    """Where the trials of a job's method are kept; all its seeds share them."""
    return study_folder / FOLDER / job.model / job.data.name / file_name(job.method.name)


def tuned(study: Study, folder: Path, job: Job) -> tuple[Job, list[Trial]]:
    """The job at the learning rate with the lowest validation loss, and the trials.

    All trials are with seed 0, whatever the job's. The first is the method's own rate. What each later one tries
    follows from those before it alone, so a search that was killed goes on as if it had not been.
    """
    if not study.tune or job.method.kind == "untouched":
        return job, []
    own, kept = job.run.lr, place(folder, job)
    trials: list[Trial] = json.loads((kept / FILE).read_text(encoding="utf-8")) if (kept / FILE).is_file() else []
    while len(trials) < study.tune:
        lr = propose(trials, own)
        trials.append({"lr": lr, "value": _loss(_trial(study, job, lr, kept / f"trial-{len(trials)}"))})
        write(trials, kept / FILE)
        shutil.rmtree(kept / f"trial-{len(trials) - 1}", ignore_errors=True)
    best = best_of(trials, job.title)
    return dataclasses.replace(job, run=_at(job, best["lr"])), trials


def propose(trials: list[Trial], own: float, seed: int = 0) -> float:
    """The next learning rate after `trials`: first those of `OPENING`, then by Optuna's estimator."""
    import optuna

    if len(trials) < len(OPENING):
        return own * OPENING[len(trials)]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space: dict[str, Any] = {"lr": optuna.distributions.FloatDistribution(own / REACH, own * REACH, log=True)}
    sampler = optuna.samplers.TPESampler(seed=seed + len(trials), n_startup_trials=len(OPENING))
    search = optuna.create_study(sampler=sampler)
    finite = [trial["value"] for trial in trials if trial["value"] is not None]
    worst = max(finite, default=0.0) + 1.0  # a rate that diverged is worse than any that did not
    for trial in trials:
        value = worst if trial["value"] is None else trial["value"]
        search.add_trial(optuna.trial.create_trial(params={"lr": trial["lr"]}, distributions=space, value=value))
    return search.ask(space).params["lr"]


def best_of(trials: list[Trial], title: str) -> Trial:
    """The trial of the lowest loss; of several, the first."""
    good = [trial for trial in trials if trial["value"] is not None]
    if not good:
        raise LuthierError(f"{title}: the loss diverged at every learning rate that was tried.")
    return min(good, key=lambda trial: trial["value"])


def _trial(study: Study, job: Job, lr: float, out: Path) -> Job:
    run = _at(job, lr)
    steps = study.tune_steps if study.tune_steps is not None else run.training.steps
    training = dataclasses.replace(run.training, steps=steps, seed=0)
    return dataclasses.replace(job, seed=0, run=dataclasses.replace(run, training=training, out=str(out)))


def _at(job: Job, lr: float) -> Run:
    return dataclasses.replace(job.run, training=dataclasses.replace(job.run.training, lr=lr))


def _loss(job: Job) -> float | None:
    """The last loss on the validation part; None where training stopped because the loss was not finite."""
    try:
        fitted = fit(job)
    except Diverged:
        return None
    value = fitted.eval_losses[-1][1]
    return value if math.isfinite(value) else None
