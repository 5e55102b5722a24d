"""What an evaluation of any task needs, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.data import Examples, Scorer
from luthier.engine.outputs import Reading, task_names
from luthier.engine.settings import Sampling

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Job:
    """What an evaluation of any task needs."""

    model: Any
    processor: Any
    examples: Examples
    task: str
    scorer: Scorer | None
    batch: int
    sampling: Sampling
    samples: int
    max_length: int | None
    progress: bool
    seed: int
    metrics: tuple[str, ...] = ()
    yes_no: bool = False

    def reading(self, done: Callable[[int], Any] = int) -> Reading:
        """Returns what a pass over the rows needs."""
        return Reading(self.model, self.processor, self.task, self.batch, row_tasks(self), done)

    def encoded(self, labels: list[str] | None = None) -> list[dict[str, Any]]:
        """Returns the features of the rows, with these classes."""
        return data.encode_all(
            self.examples,
            self.processor,
            task=self.task,
            max_length=self.max_length,
            labels=labels,
            positions=models.positions(self.model),
            pictures=True,
        )

    @property
    def longest(self) -> int | None:
        """The most tokens of a row: what was asked for, and what the model can number."""
        bounds = (self.max_length, models.positions(self.model))
        return min((each for each in bounds if each is not None), default=None)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the rows."""
        return [example.row for example in self.examples.rows]

    def classes(self) -> list[str]:
        """Returns the classes in the order of the model; raises `LuthierError` for rows of others."""
        config = self.model.config
        names = [config.id2label[i] for i in range(config.num_labels)]
        if strange := sorted(set(self.examples.labels or []) - set(names)):
            raise LuthierError(
                f"{self.examples.source} has classes that the model does not know: {', '.join(strange)}. It knows "
                f"{', '.join(names)}."
            )
        return names


@dataclass(frozen=True)
class Found:
    """One prediction and one truth a row, and how to make figures of them."""

    predictions: list[Any]
    truths: list[Any]
    scores: list[float] | None
    figures: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    """`{name: value}` of (predictions, truths), the score first; of (scores, scores) where there are any."""
    loss: float | None = None
    confidences: list[float] | None = None
    """Probability of each predicted class."""
    failed: list[tuple[int, str]] = field(default_factory=list)
    """The (row, reason) of every answer that could not be scored."""
    listed: list[dict[str, Any]] | None = None
    """What is kept of each row, where it is not its prediction and truth."""
    names: list[str] | None = None
    """The classes, in the order of the model's, where each row has one."""
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The figures of each class, where rows have several."""


def row_tasks(job: Job) -> list[str] | None:
    """Returns the task of each row, where the adapter goes by it and the rows have the column `task`."""
    return task_names(job.model, job.examples.rows)


@contextmanager
def bar(job: Job, total: int) -> Iterator[Callable[[int], Any]]:
    """A bar on a terminal's stderr."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not (job.progress and console.is_terminal):
        yield int
        return
    with Progress(console=console, transient=True) as shown:
        task = shown.add_task("evaluating", total=total)
        yield lambda count: shown.advance(task, count)
