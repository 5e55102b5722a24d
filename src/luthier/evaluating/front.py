"""Points with two scores each, and which of them others dominate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

LOWER = ("loss", "perplexity", "mse")
"""Metrics of which less is better."""
BASE = "base"


@dataclass(frozen=True)
class Point:
    """A checkpoint with its two scores."""

    stage: str
    step: int
    task: float
    """The score of what the stages are for."""
    general: float
    """The score of what must not be lost; of texts the mean loss, of which less is better."""
    task_interval: tuple[float, float]
    general_interval: tuple[float, float]
    dominated_by: str | None = None
    """A checkpoint that is as good on both and better on one; None for those on the front."""

    @property
    def name(self) -> str:
        """`stage step`, or the base."""
        return BASE if self.stage == BASE else f"{self.stage} {self.step}"


@dataclass(frozen=True)
class Front:
    """All checkpoints of a plan, those that others dominate flagged."""

    points: list[Point]
    task_metric: str
    general_metric: str

    @property
    def best(self) -> list[Point]:
        """The checkpoints that no other dominates."""
        return [point for point in self.points if point.dominated_by is None]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON."""
        points = [asdict(point) | {"name": point.name, "dominated": point.dominated_by is not None}
                  for point in self.points]  # fmt: skip
        return {"task_metric": self.task_metric, "general_metric": self.general_metric, "points": points}


def flagged(points: Sequence[Point], task_metric: str, general_metric: str) -> list[Point]:
    """Returns the points with those that dominate them, the first found; equals do not dominate one another."""

    def worth(point: Point) -> tuple[float, float]:
        signs = [-1 if metric in LOWER else 1 for metric in (task_metric, general_metric)]
        return signs[0] * point.task, signs[1] * point.general

    def above(other: Point, point: Point) -> bool:
        (a, b), (x, y) = worth(other), worth(point)
        return a >= x and b >= y and (a > x or b > y)

    return [
        replace(point, dominated_by=next((other.name for other in points if above(other, point)), None))
        for point in points
    ]
