"""The log-probabilities of a prompt's own tokens, for answers that begin with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LOGITS = 2**25
"""Logits that a pass over prompts may keep at a time."""

Scores = Sequence[tuple[float | None, Sequence[tuple[int, float]]]]
"""For each token of a prompt its log-probability given those before it (the first has none), and the likeliest ones."""
NONE: Scores = ()


def spans(width: int, rows: int, vocabulary: int) -> list[tuple[int, int]]:
    """Returns the columns [start, stop) whose logits are kept in one pass, from the last ones to the first."""
    size = max(1, LOGITS // (rows * vocabulary))
    return [(max(0, stop - size), stop) for stop in range(width, 0, -size)]


class Reading:
    """The scores of prompts padded on the left, from logits that come span by span, the last one first."""

    def __init__(self, ids: Sequence[Sequence[int]], lengths: Sequence[int], top: int) -> None:
        self._ids, self._lengths, self._top = ids, lengths, top
        self._parts: list[list[list[tuple[float | None, Sequence[tuple[int, float]]]]]] = []

    def add(self, logits: Tensor, start: int) -> None:
        """Takes in the logits [rows, columns, vocabulary] of columns from `start` on, each for the token behind it."""
        after = [row[start + 1 : start + 1 + logits.shape[1]] for row in self._ids]
        logs = logits[:, : len(after[0])].float().log_softmax(-1)
        wanted = torch.tensor(after, device=logs.device, dtype=torch.long)[..., None]
        own = logs.gather(-1, wanted)[..., 0].tolist()
        likely = logs.topk(min(self._top, logs.shape[-1])) if self._top else None
        top = [[[]] * len(row) for row in own] if likely is None else list(_pairs(likely.indices, likely.values))
        self._parts.insert(0, [list(zip(*both, strict=True)) for both in zip(own, top, strict=True)])

    def scores(self) -> list[Scores]:
        """Returns those of every row."""
        rows = [[each for part in self._parts for each in part[row]] for row in range(len(self._ids))]
        return [[(None, ()), *row[len(row) - length + 1 :]] for row, length in zip(rows, self._lengths, strict=True)]


def _pairs(ids: Tensor, values: Tensor) -> Iterator[list[list[tuple[int, float]]]]:
    for row, numbers in zip(ids.tolist(), values.tolist(), strict=True):
        yield [list(zip(*both, strict=True)) for both in zip(row, numbers, strict=True)]
