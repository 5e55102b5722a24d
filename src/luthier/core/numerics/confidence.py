"""Whether a model is as sure as it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def calibration_error(
    confidences: Sequence[float] | np.ndarray, hits: Sequence[float] | np.ndarray, bins: int = 15
) -> float:
    """Returns the expected calibration error (Guo et al. 2017, arXiv 1706.04599).

    The mean over answers of |confidence - accuracy| in `bins` equal bins.
    """
    import numpy as np

    confidence, hit = np.asarray(confidences, dtype=float), np.asarray(hits, dtype=float)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (a, b], as in the source
    gaps = [abs(confidence[place == b].sum() - hit[place == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(hit))
