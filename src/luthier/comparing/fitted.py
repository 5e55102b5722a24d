"""A trained model, by Luthier or peft, and what training it cost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.training import metrics

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Fitted:
    """A model ready to be tested, and what training it cost."""

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
    resting: tuple[str, ...] = ()
    """Parameters that a step leaves, where the update trains a part at a time: those of the last step."""

    @property
    def trained(self) -> bool:
        """Whether there is anything beside the base."""
        return self.trainable > 0


def curves(folder: Path) -> tuple[Curve, Curve]:
    """Returns (training, evaluation) losses by step."""
    lines = metrics.read(folder)
    found = [[(line["step"], line[key]) for line in lines if key in line] for key in ("loss", "eval_loss")]
    return found[0], found[1]


def tensors_on_disk(adapter: Path) -> int:
    """Returns the bytes of the safetensors files in a folder."""
    return sum(path.stat().st_size for path in adapter.glob("*.safetensors"))
