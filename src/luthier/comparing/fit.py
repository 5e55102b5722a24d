"""Fitting: one run through Luthier's training, through peft's model in the same Trainer, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from luthier import models
from luthier.comparing.fitted import Fitted, curves, tensors_on_disk
from luthier.comparing.plan import Job
from luthier.comparing.with_peft import fit_peft
from luthier.core.control import disabled
from luthier.training.command import command
from luthier.training.run import train
from luthier.training.spec import Run


def fit(job: Job) -> Fitted:
    """The job's model, fitted; an interrupted run goes on from its newest checkpoint where its kind keeps any."""
    return KINDS[job.method.kind](job.run)


def _luthier(run: Run) -> Fitted:
    result = train(run, resume=True, progress=False)
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
    )


def _untouched(run: Run) -> Fitted:
    loaded = models.load(run.model, task=run.task or "causal-lm", dtype=run.training.precision)
    total = sum(p.numel() for p in loaded.model.parameters())
    return Fitted(loaded.model, loaded.processor, nullcontext, 0, total, 0, [], [], 0.0, "")


KINDS: dict[str, Callable[[Run], Fitted]] = {"luthier": _luthier, "peft": fit_peft, "untouched": _untouched}
"""Who fits a run."""
