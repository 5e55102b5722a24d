"""Scores of redrawn test rows: the bootstrap of a run, on draws that all runs on the same rows share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier.comparing.record import Record

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
"""Bootstrap samples; the smallest p that they can show is 2 / (RESAMPLES + 1)."""
ENTRIES = 2_000_000
"""Rows drawn at a time, which bounds memory."""


def redrawn(run: Record, seed: int = 0) -> np.ndarray:
    """[RESAMPLES] scores of a run, the mean over the parts of the test, each part's rows drawn with replacement.

    Equal seeds draw equal rows, so the differences of two runs' scores are those of pairs. Empty where the run keeps
    no rows, and for a row that has no score.
    """
    import numpy as np

    parts = [_mean(hits) for hits in run.hits.values()]
    parts += [SCORES[run.metric](*zip(*pairs, strict=True)) for pairs in run.answers.values() if pairs]
    if not parts or not all(len(rows) and np.isfinite(rows).all() for rows, _ in parts):
        return np.zeros(0)
    draw = np.random.default_rng(seed)
    scores = [_scores(rows, score, draw) for rows, score in parts]
    return np.mean(scores, axis=0)


def sizes(run: Record) -> dict[str, int]:
    """Returns the rows of each part."""
    return {name: len(rows) for name, rows in (run.hits or run.answers).items()}


Score = Callable[["np.ndarray"], "np.ndarray"]
"""(sums over the rows of a draw [draws, m], of which the first counts them) -> scores [draws]."""


def _scores(rows: np.ndarray, score: Score, draw: np.random.Generator) -> np.ndarray:
    """The score of each draw, by how often each of the `rows` [n, m] is in it."""
    import numpy as np

    count, found = len(rows), []
    size = max(1, ENTRIES // count)
    for start in range(0, RESAMPLES, size):
        many = min(size, RESAMPLES - start)
        drawn = draw.integers(0, count, (many, count)) + count * np.arange(many)[:, None]
        times = np.bincount(drawn.ravel(), minlength=many * count).reshape(many, count)
        found.append(score(times @ rows))
    return np.concatenate(found)


def _mean(hits: Sequence[float]) -> tuple[np.ndarray, Score]:
    import numpy as np

    return np.stack([np.ones(len(hits)), np.asarray(hits, dtype=float)], 1), lambda sums: sums[:, 1] / sums[:, 0]


def _mcc(truths: Sequence[Any], predictions: Sequence[Any]) -> tuple[np.ndarray, Score]:
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


def _pearson(truths: Sequence[float], predictions: Sequence[float]) -> tuple[np.ndarray, Score]:
    """Pearson's correlation, 0 for a draw in which one side is constant."""
    import numpy as np

    x, y = (np.asarray(values, dtype=float) - np.mean(values) for values in (truths, predictions))

    def score(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = sums.T
        scale = np.sqrt(np.maximum((n * sxx - sx * sx) * (n * syy - sy * sy), 0))
        return np.where(scale > 0, (n * sxy - sx * sy) / np.where(scale > 0, scale, 1), 0.0)

    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], 1), score


def _word_accuracy(truths: Sequence[str], predictions: Sequence[str]) -> tuple[np.ndarray, Score]:
    """1 - errors over the words of all right texts of a draw."""
    import numpy as np

    from luthier.evaluating.errors import distance

    words = [(text.split(), said.split()) for text, said in zip(truths, predictions, strict=True)]
    rows = [(1, len(right), distance(said, right)) for right, said in words]
    return np.array(rows, dtype=float), lambda sums: 1 - sums[:, 2] / sums[:, 1]


SCORES: dict[str, Callable[..., tuple[np.ndarray, Score]]] = {
    "mcc": _mcc,
    "pearson": _pearson,
    "word_accuracy": _word_accuracy,
}
"""Metrics that are no mean of rows: (truths, predictions) -> (columns whose sums tell it, how)."""
