"""Bootstrap samples: rows drawn with replacement, a chunk of samples at a time; the interval of a mean.

Redrawn rows that are all right, or all wrong, have no spread, however few they are. Such a share has the exact bounds
of Clopper and Pearson (1934).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def resampled(rows: int, samples: int, seed: int, held: int) -> Iterator[Tensor]:
    """Yields indices [count, rows], `samples` of them in all, drawn by `seed`; about `held` are in memory at a time."""
    generator = torch.Generator().manual_seed(seed)
    size = max(1, held // rows)
    for start in range(0, samples, size):
        yield torch.randint(rows, (min(size, samples - start), rows), generator=generator)


def unseen(rows: int, tail: float = 0.025) -> float:
    """Returns the share of other rows there may be where `rows` rows show none of them: 1 - tail^(1 / rows)."""
    return 1 - tail ** (1 / rows)


def exact_interval(values: np.ndarray, tail: float = 0.025) -> tuple[float, float] | None:
    """Returns the exact interval (95% where each `tail` is 0.025) of a share of which all `values` [rows] are 0, or all
    are 1; None of others, and of no values."""
    if not len(values) or values[0] not in (0, 1) or (values != values[0]).any():
        return None
    return (1 - unseen(len(values), tail), 1.0) if values[0] else (0.0, unseen(len(values), tail))


def mean_interval(values: np.ndarray, seed: int, share: bool = False, samples: int = 1000) -> tuple[float, float]:
    """Returns the 95% interval (low, high) of the mean of `values` [rows], from so many bootstrap samples.

    A `share` is of values that cannot leave 0 to 1, as rows that are right or wrong; where all are 0, or all 1, its
    bounds are `exact_interval`'s.
    """
    if share and (exact := exact_interval(values)) is not None:
        return exact
    draw = np.random.default_rng(seed)
    means = [values[draw.integers(0, len(values), len(values))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
