"""The record of a run: everything that is measured of a fitted model."""

from __future__ import annotations

import dataclasses
from typing import Any

from luthier.comparing.fitted import Fitted
from luthier.comparing.folder import STUDY
from luthier.comparing.measures.costs import costs
from luthier.comparing.measures.forgetting import forgetting
from luthier.comparing.measures.intruders import intruders
from luthier.comparing.measures.scores import tested
from luthier.comparing.plan import Job, Plan
from luthier.comparing.record import Record
from luthier.data import Examples
from luthier.methods.objectives.sft import SFT
from luthier.training.folder import versions


def record_of(planned: Plan, job: Job, fitted: Fitted, held: Examples | None, trials: list[dict[str, Any]]) -> Record:
    """Everything that is measured of a fitted model."""
    study = planned.study
    found = tested(study, job, fitted)
    lost = forgetting(planned, job, fitted, held)
    timed = dataclasses.replace(job, run=dataclasses.replace(job.run, objective=SFT()))  # rows as no objective shaped
    cost = costs(timed, fitted, study.timing)
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
        intruders=intruders(job, fitted),
        settings=job.run.to_dict() | {"kind": job.method.kind, "lr": job.run.lr if fitted.trained else None},
        trials=trials,
        budget=job.method.budget,
        notes=[*job.method.notes, *job.data.notes],
        command=fitted.command or f"luthier compare {planned.folder / STUDY} --methods {job.method.name} --out STUDY",
        versions=versions() | _others(job),
        **{f.name: getattr(found, f.name) for f in dataclasses.fields(found)},
    )


def _others(job: Job) -> dict[str, str]:
    """Versions of what else took part."""
    import importlib.metadata

    return {"peft": importlib.metadata.version("peft")} if job.method.kind == "peft" else {}
