"""Power: the smallest difference of two methods that so many seeds and test rows would have shown.

A study that tells nothing apart has said something only if it could have told: beside every test stands the true
difference that the same seeds and rows would have told from nought in `POWER` of such studies,

    over seeds  λ s / √n,                     s the spread of the n differences, λ of Student's test (`noncentrality`)
    over rows   (z_level + z_POWER) σ,        σ the spread of the differences on redrawn rows

and the interval of a difference has both (`significance.over_both`), so the two add up in squares.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.numerics import student

if TYPE_CHECKING:
    import numpy as np

EQUAL = 1e-12
"""Differences of scores that are this close are equal up to rounding (0.3 - 0.2 is not 0.2 - 0.1)."""
POWER = 0.8
"""The share of studies in which a difference is to be told."""


def by_seeds(differences: Sequence[float], level: float, count: int | None = None) -> float:
    """Returns the smallest difference that `count` seeds would show, of the spread that these have; NaN for fewer than
    two, and where there is no spread. Without `count`, so many seeds as these are."""
    seeds = len(differences) if count is None else count
    if len(differences) < 2 or seeds < 2 or (spread := statistics.stdev(differences)) <= EQUAL:
        return math.nan
    return student.noncentrality(level, seeds - 1, POWER) * spread / math.sqrt(seeds)


def by_rows(draws: np.ndarray, level: float) -> float:
    """Returns the smallest difference that these test rows would show, of differences on redrawn rows; NaN without,
    and where these have no spread."""
    if not len(draws) or (spread := float(draws.std())) <= EQUAL:
        return math.nan
    normal = statistics.NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(POWER)) * spread


def together(*found: float) -> float:
    """Returns the root of the sum of the squares of those that are known; NaN where none is."""
    known = [value for value in found if not math.isnan(value)]
    return math.hypot(*known) if known else math.nan
