"""Rows with a class or a number, which the model gives to the whole row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.numerics.agreement import agreement, closeness
from luthier.engine.outputs import logits_of
from luthier.evaluating.job import Found, Job, bar

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
