"""The intrinsic dimension along a stack of blocks, and how surely it rises from one boundary to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.numerics.dimension import FEWEST, Dimension, draws, estimator, interval, ratios
from luthier.core.numerics.neighbours import checked, distinct

FINITE = 0.1
"""Share of distinct points below which a cloud is a finite set, whose dimension is 0: every [CLS] before block 0."""


@dataclass(frozen=True)
class Boundary:
    """The states between two blocks."""

    dimension: Dimension
    draws: Tensor
    """Bootstrap estimates [resamples]; those of boundaries with equally many points are joint."""


@dataclass(frozen=True)
class Rise:
    """What a block adds to the dimension: that of what leaves it less that of what enters."""

    before: Boundary
    after: Boundary

    @property
    def value(self) -> float:
        """The rise d_{i+1} - d_i."""
        return self.after.dimension.value - self.before.dimension.value

    @property
    def draws(self) -> Tensor:
        """The same, of the resamples."""
        return self.after.draws - self.before.draws

    @property
    def noise(self) -> Tensor:
        """The null: what resampling alone does to a rise of zero."""
        return self.draws - self.draws.mean()


def profile(
    states: Mapping[str, Tensor], *, method: str = "mle", discard: float = 0.1, resamples: int = 200, seed: int = 0
) -> dict[str, Boundary]:
    """Returns the dimension of each cloud [rows, d] by its boundary's path; row j is the same example in all of them.

    Raises `LuthierError` for fewer than 10 rows.
    """
    return {path: _boundary(points, method, discard, resamples, seed) for path, points in states.items()}


def _boundary(points: Tensor, method: str, discard: float, resamples: int, seed: int) -> Boundary:
    points = checked(points)
    if len(points) < FEWEST:
        raise LuthierError(f"{len(points)} rows tell no dimension; {FEWEST} are the fewest, hundreds are useful.")
    kept = distinct(points)
    lost = len(points) - len(kept)
    if len(kept) < max(FEWEST, FINITE * len(points)):
        return Boundary(Dimension(0.0, 0.0, 0.0, len(kept), lost, method), torch.zeros(resamples, dtype=torch.float64))
    mu = ratios(points[kept])
    drawn = draws(mu, method=method, discard=discard, resamples=resamples, seed=seed)
    value = float(estimator(method)(mu, discard))
    return Boundary(Dimension(value, *interval(drawn), len(kept), lost, method), drawn)


def rises(found: Mapping[str, Boundary]) -> dict[str, Rise]:
    """Returns the rise of each block `<stack>.<i>`, from its boundary to `<stack>.<i + 1>`."""
    return {path: Rise(found[path], found[after]) for path in found if (after := _next(path)) in found}


def _next(path: str) -> str:
    stack, _, index = path.rpartition(".")
    return f"{stack}.{int(index) + 1}"
