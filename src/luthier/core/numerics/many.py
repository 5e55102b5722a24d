"""Figures of texts that may have several classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.numerics.tags import of_counts

if TYPE_CHECKING:
    import numpy as np


def chosen(logits: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Returns which classes have a probability σ(logit) of at least the threshold, bool [rows, classes]."""
    return sigmoid(logits) >= threshold


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns σ(logits) in float64."""
    import numpy as np

    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def figures(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Returns `micro_f1`, `micro_precision`, `micro_recall`, and `exact_match`: rows of which every class is right."""
    right, said, there = float((predicted & truth).sum()), float(predicted.sum()), float(truth.sum())
    micro = {f"micro_{name}": value for name, value in of_counts(right, said, there).items()}
    return {**micro, "exact_match": float((predicted == truth).all(-1).mean())}


def by_class(predicted: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the figures of each class, with how many rows have it and were said to."""
    found = {}
    for place, name in enumerate(names):
        a, b = predicted[:, place], truth[:, place]
        said, there = int(a.sum()), int(b.sum())
        found[name] = of_counts(float((a & b).sum()), said, there) | {"rows": there, "predicted": said}
    return found
