"""The contract of a selection of data: which rows to learn from, or which ones to show before each prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luthier.core.contracts.component import Component
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    import numpy as np

    from luthier.core.contracts.example import Example, Examples


@dataclass(frozen=True)
class Pool:
    """The rows to choose from, and what a selection may compare them by."""

    examples: Examples
    target: Examples | None = None
    """The rows of the target task."""
    seed: int = 0
    states: Callable[[Examples], np.ndarray] | None = None
    """The mean last hidden state of each row, [rows, d]; None without a model."""


@dataclass(frozen=True)
class Selection(Component):
    """A rule that chooses rows of data; it defines `score`, `nearest` or both."""

    targeted: ClassVar[bool] = True
    """Whether `score` needs target rows."""

    @property
    def reads_states(self) -> bool:
        """Whether it reads `Pool.states`, so that a model is needed."""
        return False

    def score(self, pool: Pool) -> np.ndarray:
        """Scores each row of the pool, [rows], finite; the highest are taken first."""
        raise LuthierError(f"{self.name()} finds rows near a prompt and scores none; choose another one.")

    def nearest(self, queries: Sequence[Example], pool: Pool, count: int) -> list[list[int]]:
        """For each query, the places of at most `count` rows of the pool, the best first; never the query itself, nor
        another row with its input."""
        raise LuthierError(f"{self.name()} scores rows and finds none near a prompt; choose another one.")
