"""The matrix "after task i, on task j", and what follows from it: accuracy, transfer and forgetting, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.core.numerics.resampling import exact_interval

RESAMPLES = 1000
"""Bootstrap samples of an interval."""
Scores = list[np.ndarray]
"""The score of every test row, an array for each task."""


@dataclass(frozen=True)
class Matrix:
    """Scores of test rows before training and after each task."""

    names: list[str]
    before: Scores
    after: dict[int, Scores]
    """By task (from 0), the scores of all tasks after it."""

    @property
    def whole(self) -> bool:
        """Whether the model was tested after every task, so that transfer and forgetting can be told."""
        return sorted(self.after) == list(range(len(self.names)))

    def means(self) -> np.ndarray:
        """Returns [tasks + 1, tasks]: row 0 before training, row i after task i; NaN where nothing was tested."""
        rows = [self.before, *(self.after.get(i) for i in range(len(self.names)))]
        return np.array([[np.nan] * len(self.names) if row is None else [s.mean() for s in row] for row in rows])

    def figures(self, seed: int = 0) -> dict[str, dict[str, float]]:
        """Returns `{figure: {value, low, high}}`: the mean and the 95% interval over test rows.

        Rows of a task are drawn with replacement, the same ones after every task; the intervals hold nothing of what
        another seed or order of tasks would change.
        """
        point = self.means()
        best = point[1:].copy()
        for task in range(len(self.names)):
            best[:task, task] = -np.inf  # forgetting is of what was learned
        at = best[:-1].argmax(0) if self.whole else None
        values = summary(point, at)
        draw = np.random.default_rng(seed)
        samples = [summary(self._resampled(draw), at) for _ in range(RESAMPLES)]
        found = {}
        for name, value in values.items():
            low, high = np.quantile([each[name] for each in samples], [0.025, 0.975])
            found[name] = {"value": float(value), "low": float(low), "high": float(high)}
        return found

    def _resampled(self, draw: np.random.Generator) -> np.ndarray:
        places = [draw.integers(0, len(scores), len(scores)) for scores in self.before]
        rows = [self.before, *(self.after.get(i) for i in range(len(self.names)))]
        nothing = [np.nan] * len(self.names)
        return np.array(
            [nothing if r is None else [s[at].mean() for s, at in zip(r, places, strict=True)] for r in rows]
        )

    def intervals(self, seed: int = 0) -> np.ndarray:
        """Returns [2, tasks + 1, tasks]: the ends of the 95% intervals of the cells."""
        draw = np.random.default_rng(seed)
        found = np.quantile([self._resampled(draw) for _ in range(RESAMPLES)], [0.025, 0.975], axis=0)
        for number, row in enumerate([self.before, *(self.after.get(i) for i in range(len(self.names)))]):
            for task, scores in enumerate(row or ()):
                if (exact := exact_interval(scores)) is not None:
                    found[:, number, task] = exact
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns the scores as JSON holds them."""
        after = {str(task): [s.tolist() for s in scores] for task, scores in self.after.items()}
        return {"names": self.names, "before": [s.tolist() for s in self.before], "after": after}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Matrix:
        """Returns what `to_dict` wrote."""
        after = {int(task): arrays(scores) for task, scores in values["after"].items()}
        return cls(list(values["names"]), arrays(values["before"]), after)


def arrays(scores: Sequence[Sequence[float]]) -> Scores:
    """Returns lists of scores as arrays."""
    return [np.asarray(each, dtype=float) for each in scores]


def summary(cells: np.ndarray, best: np.ndarray | None) -> dict[str, float]:
    """Returns the figures of R [tasks + 1, tasks], whose row 0 was measured before training, T tasks:

    average accuracy     (1/T) Σ_j R_T,j
    backward transfer    (1/(T-1)) Σ_{j<T} R_T,j - R_j,j
    forward transfer     (1/(T-1)) Σ_{j>1} R_{j-1},j - R_0,j
    forgetting           (1/(T-1)) Σ_{j<T} max_{j≤i<T} R_i,j - R_T,j

    (Lopez-Paz and Ranzato 2017 for the transfers, Chaudhry et al. 2018 for forgetting.)

    `best` are the rows (of those after task 1) of the maxima; without them the model was tested at the end alone, and
    the accuracy is all that is known.
    """
    last = len(cells) - 1
    found = {"average accuracy": float(cells[last].mean())}
    if best is None:
        return found
    earlier = np.arange(last - 1)
    found["backward transfer"] = float((cells[last, earlier] - cells[earlier + 1, earlier]).mean())
    found["forward transfer"] = float((cells[earlier + 1, earlier + 1] - cells[0, earlier + 1]).mean())
    found["forgetting"] = float((cells[best[earlier] + 1, earlier] - cells[last, earlier]).mean())
    return found
