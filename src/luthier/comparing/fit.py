"""Training one run of a study: through Luthier's training, through peft's model in the same Trainer, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from luthier.comparing.fitted import Fitted, curves, tensors_on_disk
from luthier.comparing.plan import Job
from luthier.comparing.with_peft import fit_peft
from luthier.core.adapters.control import disabled
from luthier.training.base import load_base
from luthier.training.command import command
from luthier.training.result import Result
from luthier.training.run import train
from luthier.training.spec import Run

Train = Callable[[Run], Result]
"""Trains a run of Luthier's, or goes on with it."""


def fit(job: Job) -> Fitted:
    """The job's model, fitted; an interrupted run resumes from its newest checkpoint where its kind keeps any."""
    return KINDS[job.method.kind](job)


def _luthier(job: Job) -> Fitted:
    return fitted(job, lambda run: train(run, resume=True, progress=False))


def fitted(job: Job, trained: Train) -> Fitted:
    """The job's model, fitted by Luthier."""
    run = job.run
    result = trained(run)
    losses, evals = curves(run.folder)
    return Fitted(
        model=result.model,
        processor=result.processor,
        frozen=lambda: disabled(result.model),
        trainable=result.trainable,
        total=result.total,
        bytes=tensors_on_disk(result.adapter),
        losses=losses,
        eval_losses=evals,
        seconds=result.seconds,
        command=command(run),
        resting=result.resting,
    )


def _untouched(job: Job) -> Fitted:
    loaded = load_base(job.run, job.data.task, job.data.labels)
    total = sum(p.numel() for p in loaded.model.parameters())
    return Fitted(loaded.model, loaded.processor, nullcontext, 0, total, 0, [], [], 0.0, "")


KINDS: dict[str, Callable[[Job], Fitted]] = {
    "luthier": _luthier,
    "peft": lambda job: fit_peft(job.run),
    "untouched": _untouched,
}
"""Who fits a run."""
