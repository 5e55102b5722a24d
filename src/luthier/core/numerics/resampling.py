"""Bootstrap samples: rows drawn with replacement, a chunk of samples at a time; the interval of a mean."""

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


def mean_interval(values: np.ndarray, seed: int, samples: int = 1000) -> tuple[float, float]:
    """Returns the 95% interval (low, high) of the mean of `values` [rows], from so many bootstrap samples."""
    draw = np.random.default_rng(seed)
    means = [values[draw.integers(0, len(values), len(values))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
