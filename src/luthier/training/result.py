"""The result of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """The result of a training run."""

    adapter: Path
    """Folder of the saved adapter."""
    folder: Path
    """The run folder."""
    losses: list[tuple[int, float]]
    """The (step, training loss) of every step."""
    eval_loss: float | None
    """The last evaluation loss; None without evaluation rows."""
    trainable: int
    """The number of trainable parameters."""
    total: int
    """The number of parameters of the model, without the adapter."""
    seconds: float
    """Time spent in training, interruptions left out."""
    model: Any
    """The adapted model, in evaluation mode."""
    processor: Any
    """Its tokenizer, image processor or feature extractor."""
