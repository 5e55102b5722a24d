"""`train`: from a run to its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.form import Form
from luthier.core.objective import Objective
from luthier.training.spec import Run, Training


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    adapter: Path
    """Folder of the saved adapter."""
    folder: Path
    """The run folder."""
    losses: list[tuple[int, float]]
    """(step, training loss), one a step."""
    eval_loss: float | None
    """The last evaluation loss; None without evaluation rows."""
    trainable: int
    """Trained numbers."""
    total: int
    """Numbers of the base and the adapter."""
    seconds: float
    """Time spent in training, interruptions left out."""
    model: Any
    """The adapted model, in evaluation mode."""
    processor: Any
    """Its tokenizer, image processor or feature extractor."""


def train(
    run: Run | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    model: str | None = None,
    data: str | None = None,
    form: Form | None = None,
    where: str | None = None,
    out: str = "run",
    task: str | None = None,
    eval_data: str | None = None,
    objective: Objective | None = None,
    training: Training | None = None,
    skip_bad_rows: bool = False,
    limit: int | None = None,
    name: str = "default",
) -> Result:
    """Trains `run`, or the run that the other fields describe (see `Run`)."""
    raise NotImplementedError
