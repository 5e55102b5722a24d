"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luthier.core.notebook import figures, shown


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A score with its uncertainty, and the predictions behind it."""

    score: float
    """Mean score of generated answers; accuracy of classes, micro F1 of several a text; F1 of entities (accuracy of
    tags that mark none) and of extracted answers; MRR@10 of texts to embed; Pearson's correlation of numbers; mean loss
    of texts."""
    count: int
    """The number of rows that were scored."""
    interval: tuple[float, float]
    """The 95% interval of the score by the percentile bootstrap over rows, seeded; exact (Clopper and Pearson) where
    rows are all right or all wrong."""
    predictions: list[dict[str, Any]]
    """`{"row", "prediction", "answer", "score"}` of each row (no score for numbers; of classes also `confidence`, the
    probability of the one predicted); empty unless kept."""
    loss: float | None
    """Mean loss of the labels; None for generated answers."""
    metrics: dict[str, float]
    """Every figure by name: `accuracy`, `mcc` (Matthews) and the means over classes, `mse` and `pearson`, `loss` and
    `perplexity`, or the scorer's own."""
    failed: list[tuple[int, str]] = field(default_factory=list)
    """The (row, reason) of every answer that the scorer or a further metric failed on; it counts as wrong."""
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    """The figures of each task with its `rows`, of rows whose column `task` names several; the mean of a score over
    the tasks, each by its rows, is the score."""
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    """`precision`, `recall`, `f1`, `rows` and `predicted` of each class, or type of entity (which the last two then
    count); empty where there are no classes."""
    confusion: dict[str, Any] = field(default_factory=dict)
    """`labels`, and `counts`: counts[i][j] rows of class i were taken for class j; empty where there are no classes."""

    def figures(self) -> dict[str, Any]:
        """Returns the score with its interval, and every other figure by name."""
        low, high = self.interval
        told = {"score": self.score, "95% interval": f"{low:.4g} to {high:.4g}", "rows": self.count, "loss": self.loss}
        return told | self.metrics | ({"failed": len(self.failed)} if self.failed else {})

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {shown(value)}" for name, value in self.figures().items() if value is not None)
        return f"Evaluation({told})"

    def _repr_html_(self) -> str:
        return figures(self.figures())
