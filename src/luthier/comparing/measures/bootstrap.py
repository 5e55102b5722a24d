"""Scores of redrawn test rows: the bootstrap of a run, on draws that all runs on the same rows share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier.comparing.record import Record

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
"""Bootstrap samples; the smallest p that they can show is 2 / (RESAMPLES + 1)."""
ENTRIES = 2_000_000
"""Rows drawn at a time, which bounds memory."""


def redrawn(runs: Sequence[Record], seed: int = 0) -> list[np.ndarray]:
    """[RESAMPLES] scores of each run, the mean over the parts of the test, each part's rows drawn with replacement.

    Equal seeds draw equal rows, once for all runs that have as many, so the differences of two runs' scores are those
    of pairs. Empty where a run keeps no rows, and for a row that has no score.
    """
    import numpy as np

    found, alike = [np.zeros(0) for _ in runs], defaultdict(list)
    for place, parts in enumerate(map(_parts, runs)):
        if parts and all(len(rows) and np.isfinite(rows).all() for rows, _ in parts):
            alike[tuple(len(rows) for rows, _ in parts)].append((place, parts))
    for some in alike.values():
        draw = np.random.default_rng(seed)
        scores = [_scores(same, draw) for same in zip(*(parts for _, parts in some), strict=True)]
        for (place, _), of_run in zip(some, zip(*scores, strict=True), strict=True):
            found[place] = np.mean(of_run, axis=0)
    return found


def _parts(run: Record) -> list[Part]:
    parts = [_mean(hits) for hits in run.hits.values()]
    return parts + [SCORES[run.metric](*zip(*pairs, strict=True)) for pairs in run.answers.values() if pairs]


def sizes(run: Record) -> dict[str, int]:
    """Returns the rows of each part."""
    return {name: len(rows) for name, rows in (run.hits or run.answers).items()}


Score = Callable[["np.ndarray"], "np.ndarray"]
"""(sums over the rows of a draw [draws, m], of which the first counts them) -> scores [draws]."""


Part = tuple["np.ndarray", Score]
"""The columns of a part's rows [n, m], and how their sums tell the score."""


def _scores(parts: Sequence[Part], draw: np.random.Generator) -> list[np.ndarray]:
    """The score of each draw, for each of several that have as many rows, by how often each row is in it."""
    import numpy as np

    count, found = len(parts[0][0]), []
    size = max(1, ENTRIES // count)
    for start in range(0, RESAMPLES, size):
        many = min(size, RESAMPLES - start)
        drawn = draw.integers(0, count, (many, count)) + count * np.arange(many)[:, None]
        times = np.bincount(drawn.ravel(), minlength=many * count).reshape(many, count).astype(float)
        found.append([score(times @ rows) for rows, score in parts])
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def _mean(hits: Sequence[float]) -> Part:
    import numpy as np

    return np.stack([np.ones(len(hits)), np.asarray(hits, dtype=float)], 1), lambda sums: sums[:, 1] / sums[:, 0]


def _mcc(truths: Sequence[Any], predictions: Sequence[Any]) -> Part:
    """Matthews' correlation for any number of classes (Gorodkin 2004), 0 where undefined."""
    import numpy as np

    truth, predicted = np.asarray(truths), np.asarray(predictions)
    classes = np.unique(np.concatenate([truth, predicted]))
    sides = [values[:, None] == classes for values in (truth, predicted)]
    columns = [np.ones((len(truth), 1)), (truth == predicted)[:, None], *sides]

    def score(sums: np.ndarray) -> np.ndarray:
        n, right, (t, p) = sums[:, 0], sums[:, 1], np.split(sums[:, 2:], 2, axis=1)
        scale = np.sqrt((n * n - (t * t).sum(1)) * (n * n - (p * p).sum(1)))
        return np.where(scale > 0, (right * n - (t * p).sum(1)) / np.where(scale > 0, scale, 1), 0.0)

    return np.concatenate(columns, axis=1).astype(float), score


def _pearson(truths: Sequence[float], predictions: Sequence[float]) -> Part:
    """Pearson's correlation, 0 for a draw in which one side is constant."""
    import numpy as np

    x, y = (np.asarray(values, dtype=float) - np.mean(values) for values in (truths, predictions))

    def score(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = sums.T
        scale = np.sqrt(np.maximum((n * sxx - sx * sx) * (n * syy - sy * sy), 0))
        return np.where(scale > 0, (n * sxy - sx * sy) / np.where(scale > 0, scale, 1), 0.0)

    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], 1), score


def _word_accuracy(truths: Sequence[str], predictions: Sequence[str]) -> Part:
    """1 - errors over the words of all right texts of a draw."""
    import numpy as np

    from luthier.core.numerics.word_errors import distance

    words = [(text.split(), said.split()) for text, said in zip(truths, predictions, strict=True)]
    rows = [(1, len(right), distance(said, right)) for right, said in words]
    return np.array(rows, dtype=float), lambda sums: 1 - sums[:, 2] / sums[:, 1]


SCORES: dict[str, Callable[..., Part]] = {
    "mcc": _mcc,
    "pearson": _pearson,
    "word_accuracy": _word_accuracy,
}
"""Metrics that are no mean of rows: (truths, predictions) -> (columns whose sums tell it, how)."""
