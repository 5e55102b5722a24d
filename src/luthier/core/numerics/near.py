"""Figures of vectors: whether the text that belongs to another is the nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DEEP = 10
"""The rank up to which a mean reciprocal rank counts."""
NAMES, NEARER = (f"mrr@{DEEP}", "accuracy@1", f"accuracy@{DEEP}"), "triplet_accuracy"
"""The figures of all rows, and that of rows with negatives."""


def ranks(vectors: np.ndarray, rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns (rank of the positive among all candidates, whether it is nearer than the row's negatives) of each row.

    [rows, 2]; the second is NaN in rows without negatives. `vectors` are those of the texts of all rows, behind each
    other: an anchor, its positive, its negatives. Candidates are the different positives and negatives of all rows; of
    equals the positive ranks last.
    """
    import numpy as np

    starts = np.cumsum([0, *map(len, rows)])[:-1]
    texts = [(text, start + i) for start, row in zip(starts, rows, strict=True) for i, text in enumerate(row) if i]
    first = dict(reversed(texts))
    places = {text: place for place, text in enumerate(first)}
    candidates = vectors[list(first.values())]
    found = []
    for start, row in zip(starts, rows, strict=True):
        anchor, positive = vectors[start], vectors[start + 1]
        scores = candidates @ anchor
        rank = int((scores >= scores[places[row[1]]]).sum())
        others = vectors[start + 2 : start + len(row)] @ anchor
        found.append([rank, float(anchor @ positive > others.max()) if len(others) else np.nan])
    return np.array(found, dtype=float).reshape(-1, 2)


def figures(found: np.ndarray) -> dict[str, float]:
    """Returns `mrr@10`, `accuracy@1`, `accuracy@10`, and `triplet_accuracy` where rows have negatives."""
    import numpy as np

    rank, nearer = found[:, 0], found[:, 1]
    values = np.where(rank <= DEEP, 1 / rank, 0), rank <= 1, rank <= DEEP
    told = {name: float(each.mean()) for name, each in zip(NAMES, values, strict=True)}
    return told if np.isnan(nearer).all() else told | {NEARER: float(np.nanmean(nearer))}
