"""Bootstrap samples: rows drawn with replacement, a chunk of samples at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def resampled(rows: int, samples: int, seed: int, held: int) -> Iterator[Tensor]:
    """Yields indices [count, rows], `samples` of them in all, drawn by `seed`; about `held` are in memory at a time."""
    generator = torch.Generator().manual_seed(seed)
    size = max(1, held // rows)
    for start in range(0, samples, size):
        yield torch.randint(rows, (min(size, samples - start), rows), generator=generator)
