"""The contract of a selection of data: which rows to learn from, or which ones to show before each prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from luthier.core.contracts.component import Component
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    import numpy as np

    from luthier.core.contracts.example import Example, Examples


class RowModel(Protocol):
    """What a model tells of rows, in their order."""

    def gradients(self, examples: Examples, size: int, seed: int) -> np.ndarray:
        """Returns the gradient of each row's loss, projected to `size` numbers by the seed, [rows, size]."""
        ...

    def figures(self, examples: Examples) -> Mapping[str, np.ndarray]:
        """Returns figures of each row's answer by name, [rows] each: `loss` (mean over tokens), `error` (the norm of
        p - y, EL2N), `entropy` of the next token, and `tokens`."""
        ...


@dataclass(frozen=True)
class Taken:
    """The rows that a selection takes."""

    places: list[int]
    """Places in the pool, that of the highest score first."""
    scores: np.ndarray
    """Of every row of the pool."""
    redundant: list[int] = field(default_factory=list)
    """Places of rows that say what another one says; they are not taken, and leave a pool that is kept for good."""


@dataclass(frozen=True)
class Pool:
    """The rows to choose from, and what a selection may compare them by."""

    examples: Examples
    target: Examples | None = None
    """The rows of the target task."""
    seed: int = 0
    states: Callable[[Examples], np.ndarray] | None = None
    """The mean last hidden state of each row, [rows, d]; None without a model."""
    model: RowModel | None = None
    """What the model says of rows; None without one."""

    def read(self, name: str) -> RowModel:
        """Returns the model for the selection `name`; raises `LuthierError` where there is none."""
        if self.model is None:
            raise LuthierError(f"{name} reads the rows with a model, and none is given; name one (model).")
        return self.model


@dataclass(frozen=True)
class Selection(Component):
    """A rule that chooses rows of data; it defines `score`, `nearest`, `query` or several of them."""

    targeted: ClassVar[bool] = True
    """Whether `score` needs target rows."""

    @property
    def reads_states(self) -> bool:
        """Whether it reads `Pool.states`, so that a model is needed."""
        return False

    @property
    def reads_rows(self) -> bool:
        """Whether it reads `Pool.model`: gradients or figures of rows."""
        return False

    @classmethod
    def takes(cls) -> bool:
        """Returns whether it takes rows to learn from, rather than saying which to label or to show alone."""
        return cls.score is not Selection.score or cls.take is not Selection.take

    def take(self, pool: Pool, rows: int) -> Taken:
        """Takes `rows` rows of the pool. Default: those that score highest, of equal ones the first."""
        import numpy as np

        scores = self.score(pool)
        return Taken([int(i) for i in np.argsort(-scores, kind="stable")[:rows]], scores)

    def query(self, pool: Pool, known: Mapping[int, str], budget: int) -> int:
        """Returns the place of the row to label next, of those not in `known` (labels by place); `budget` are the
        labels that are left to ask for, this one included."""
        raise LuthierError(f"{self.name()} does not say which row to label next; choose another one.")

    def score(self, pool: Pool) -> np.ndarray:
        """Scores each row of the pool, [rows], finite; the highest are taken first."""
        raise LuthierError(f"{self.name()} does not score rows; choose another one (luthier list selections).")

    def nearest(self, queries: Sequence[Example], pool: Pool, count: int) -> list[list[int]]:
        """For each query, the places of at most `count` rows of the pool, the best first; never the query itself, nor
        another row with its input."""
        raise LuthierError(f"{self.name()} finds none near a prompt; choose another one, as bm25.")
