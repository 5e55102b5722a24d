"""Fitting: one run through Luthier's training, through peft's model in the same Trainer, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import models
from luthier.comparing.plan import Job
from luthier.core.control import disabled
from luthier.training import metrics
from luthier.training.command import command
from luthier.training.run import train
from luthier.training.spec import Run

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Fitted:
    """A model ready to be tested, and what fitting it took."""

    model: Any
    """What is called: a transformers model, adapted or not."""
    processor: Any
    frozen: Callable[[], AbstractContextManager]
    """The base as it was, while the context lasts."""
    trainable: int
    total: int
    bytes: int
    """Size of the adapter's files of tensors."""
    losses: Curve
    eval_losses: Curve
    seconds: float
    command: str
    """What repeats it; nothing where only the study does."""

    @property
    def trained(self) -> bool:
        """Whether there is anything beside the base."""
        return self.trainable > 0


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


def _peft(run: Run) -> Fitted:
    from luthier.comparing.with_peft import fit_peft

    return fit_peft(run)


def _untouched(run: Run) -> Fitted:
    loaded = models.load(run.model, task=run.task or "causal-lm", dtype=run.training.precision)
    total = sum(p.numel() for p in loaded.model.parameters())
    return Fitted(loaded.model, loaded.processor, nullcontext, 0, total, 0, [], [], 0.0, "")


KINDS: dict[str, Callable[[Run], Fitted]] = {"luthier": _luthier, "peft": _peft, "untouched": _untouched}
"""Who fits a run."""


def curves(folder: Path) -> tuple[Curve, Curve]:
    """(training, evaluation) losses by step."""
    lines = metrics.read(folder)
    found = [[(line["step"], line[key]) for line in lines if key in line] for key in ("loss", "eval_loss")]
    return found[0], found[1]


def tensors_on_disk(adapter: Path) -> int:
    """Bytes of the safetensors files in a folder."""
    return sum(path.stat().st_size for path in adapter.glob("*.safetensors"))
