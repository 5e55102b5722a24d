"""Rows of like length together, so that batches hold little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

SPAN = 50
"""Groups sorted at a time: rows are drawn at random, and a group takes its like out of this many."""


class Repeated(Sampler[int]):
    """An order of rows in which those of each step come `times` over: its answers are learned from so many times.

    Drawn anew in each epoch, as by `ByLength`; what does not fill a step is left out, unless it is all that there is.
    """

    def __init__(self, rows: int, step: int, times: int, seed: int) -> None:
        self.rows, self.group, self.times, self.seed = rows, step, times if rows >= step else 1, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """What accelerate calls as an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(self.rows // self.group, 1) * min(self.group, self.rows) * self.times

    def __iter__(self) -> Iterator[int]:
        drawn = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = torch.randperm(self.rows, generator=drawn).tolist()
        steps = [rows[i : i + self.group] for i in range(0, max(self.rows - self.group, 0) + 1, self.group)]
        return iter([row for step in steps for _ in range(self.times) for row in step])


class ByLength(Sampler[int]):
    """An order of rows in which every `group` of them are of like length, drawn anew in each epoch.

    The rows are permuted, each SPAN groups of them are sorted by length, and the groups are permuted, so that lengths
    come in no order (transformers' `group_by_length` goes from long to short over and over). What does not fill a
    group ends the epoch. The order follows from `seed` and the epoch alone: all processes draw the same.
    """

    def __init__(self, lengths: Sequence[int], group: int, seed: int) -> None:
        self.lengths, self.group, self.seed = lengths, group, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """What accelerate calls as an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        drawn = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=drawn).tolist()
        whole, size = len(rows) // self.group * self.group, SPAN * self.group
        spans = [sorted(rows[i : min(i + size, whole)], key=self.lengths.__getitem__) for i in range(0, whole, size)]
        groups = [span[i : i + self.group] for span in spans for i in range(0, len(span), self.group)]
        order = torch.randperm(len(groups), generator=drawn).tolist()
        return iter([*(row for i in order for row in groups[i]), *rows[whole:]])
