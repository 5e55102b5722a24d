"""`evaluate`: what a model scores on examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.data import Examples, Scorer


@dataclass(frozen=True)
class Evaluation:
    """A score with its uncertainty, and what led to it."""

    score: float
    count: int
    interval: tuple[float, float]
    predictions: list[dict[str, Any]]
    loss: float | None
    metrics: dict[str, float]


def evaluate(
    model: Any,
    processor: Any,
    examples: Examples,
    *,
    scorer: Scorer | None = None,
    batch: int = 16,
    max_new_tokens: int = 128,
    max_length: int | None = None,
    task: str | None = None,
    progress: bool = True,
    keep_predictions: bool = True,
    seed: int = 0,
) -> Evaluation:
    """The score of `model` on `examples`."""
    raise NotImplementedError
