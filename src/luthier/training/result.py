"""What `train` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    adapter: Path
    """Folder of the saved adapter."""
    folder: Path
    """The run folder."""
    losses: list[tuple[int, float]]
    """(step, training loss), one per step."""
    eval_loss: float | None
    """The last evaluation loss; None without evaluation rows."""
    trainable: int
    """Trainable parameters."""
    total: int
    """Numbers of the model, without the adapter."""
    seconds: float
    """Time spent in training, interruptions left out."""
    model: Any
    """The adapted model, in evaluation mode."""
    processor: Any
    """Its tokenizer, image processor or feature extractor."""
