"""Rows with a class or a number, which the model gives to the whole row; and the figures of these."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from luthier.evaluating.job import Found, Job, bar
from luthier.evaluating.outputs import logits_of

if TYPE_CHECKING:
    import numpy as np


def with_class(job: Job) -> Found:
    """The likeliest class of each row, against its label."""
    names = job.classes()
    logits, labels, loss = outputs_of(job, names)
    predicted = [names[i] for i in logits.argmax(-1)]
    return Found(predicted, [names[i] for i in labels], None, agreement, loss, confidence(logits), names=names)


def with_number(job: Job) -> Found:
    """The number of each row, against its label."""
    logits, labels, loss = outputs_of(job, None)
    return Found(logits[:, 0].tolist(), labels.tolist(), None, closeness, loss)


def outputs_of(job: Job, names: list[str] | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns (logits [rows, outputs], labels [rows], mean loss), in the order of the rows."""
    import numpy as np

    features = job.encoded(names)
    with bar(job, len(features)) as done:
        logits, loss = logits_of(job.reading(done), features)
    return logits, np.array([feature["labels"] for feature in features]), loss


def confidence(logits: np.ndarray) -> list[float]:
    """Returns the highest of each row's probabilities, by the softmax of logits [rows, classes]."""
    import numpy as np

    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return (1 / shifted.sum(-1)).tolist()


def agreement(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`accuracy`, and `mcc`: Matthews' correlation for any number of classes (Gorodkin 2004), 0 where undefined."""
    import numpy as np

    classes = np.union1d(predicted, truth)
    of = [np.array([(values == name).sum() for name in classes], dtype=float) for values in (predicted, truth)]
    n, right = float(len(truth)), float((predicted == truth).sum())
    covariance = right * n - float(of[0] @ of[1])
    scale = math.sqrt((n * n - of[0] @ of[0]) * (n * n - of[1] @ of[1]))
    return {"accuracy": right / n, "mcc": covariance / scale if scale else 0.0}


def closeness(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Returns `pearson` (NaN where either side is constant) and `mse`."""
    import numpy as np

    left, right = predicted - predicted.mean(), truth - truth.mean()
    scale = float(np.sqrt((left @ left) * (right @ right)))
    mse = float(((predicted - truth) ** 2).mean())
    return {"pearson": float(left @ right) / scale if scale else math.nan, "mse": mse}
