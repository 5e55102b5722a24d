"""The result of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.notebook import curves, figures, shown

FAILURES = (LuthierError, RuntimeError, MemoryError, IndexError)
"""What ends a run and not those made beside it: bad values, no memory left, rows longer than a model's positions, a
layer that cannot be shared."""


@dataclass(frozen=True, repr=False)
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
    eval_losses: list[tuple[int, float]] = field(default_factory=list)
    """The (step, evaluation loss) of each evaluation."""
    resting: tuple[str, ...] = ()
    """Parameters of the adapter that the last step did not train, by the model's names."""

    def figures(self) -> dict[str, Any]:
        """Returns what came of the run, in few numbers."""
        return {
            "steps": self.losses[-1][0] if self.losses else 0,
            "loss": self.losses[-1][1] if self.losses else None,
            "evaluation loss": self.eval_loss,
            "trainable parameters": self.trainable,
            "share of the model": f"{self.trainable / self.total:.3%}",
            "seconds": self.seconds,
        }

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {shown(value)}" for name, value in self.figures().items() if value is not None)
        return f"Result({str(self.folder)!r}: {told})"

    def _repr_html_(self) -> str:
        drawn = curves({"training loss": self.losses, "evaluation loss": self.eval_losses})
        return figures({"run": self.folder, **self.figures()}) + drawn
