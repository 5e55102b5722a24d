"""The area under the ROC curve, by ranks."""

from __future__ import annotations

import numpy as np


def auc(lower: np.ndarray, higher: np.ndarray) -> float:
    """Returns P(a number of `lower` < one of `higher`) + ½ P(equal): 1 where all are below, 0.5 by chance."""
    ordered = np.sort(higher)
    above = len(higher) - np.searchsorted(ordered, lower, "right")
    equal = np.searchsorted(ordered, lower, "right") - np.searchsorted(ordered, lower, "left")
    return float((above + 0.5 * equal).mean() / len(higher))
