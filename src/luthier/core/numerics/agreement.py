"""How far predictions agree with the truth: of one class or one number a row, and class by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


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


def by_class(predicted: Sequence[str], truth: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns `{class: {"precision", "recall", "f1", "rows", "predicted"}}`, 0 where a class was never predicted or
    never there, as scikit-learn has it."""
    found = {}
    for name in names:
        right = sum(p == t == name for p, t in zip(predicted, truth, strict=True))
        there, said = sum(t == name for t in truth), sum(p == name for p in predicted)
        precision, recall = right / said if said else 0.0, right / there if there else 0.0
        both = precision + recall
        f1 = 2 * precision * recall / both if both else 0.0
        found[name] = {"precision": precision, "recall": recall, "f1": f1, "rows": there, "predicted": said}
    return found


def macro(classes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Returns the means of precision, recall and F1 over the classes that are there or were predicted."""
    seen = [each for each in classes.values() if each["rows"] or each["predicted"]]
    return {f"macro_{key}": sum(each[key] for each in seen) / len(seen) for key in ("precision", "recall", "f1")}
