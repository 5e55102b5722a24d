"""How far unlearned models are from retrained ones: KLOM and membership tests, beside what chance gives."""

from __future__ import annotations

import numpy as np

from luthier.core.errors import LuthierError
from luthier.core.numerics import student

BINS = 20
RESAMPLES = 1000
LEAST = 3
"""Models of each kind."""
SMALLEST = 1e-7
"""The loss that a margin is taken of at least: below it, float32 does not tell losses from 0."""


def klom(unlearned: np.ndarray, retrained: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Returns KL(retrained || unlearned) of the margins of each row, [rows], from [models, rows] of each.

    Histograms of `bins` bins over the range of both, with half a count added to each bin. The estimate is above 0 for
    samples of one distribution too, the more so the fewer the models: `klom_above_null` says what is left.
    """
    found = np.empty(unlearned.shape[1])
    for row in range(unlearned.shape[1]):
        both = np.concatenate([unlearned[:, row], retrained[:, row]])
        edges = np.linspace(both.min(), both.max() + 1e-12, bins + 1)
        counts = [np.histogram(each[:, row], edges)[0] + 0.5 for each in (retrained, unlearned)]
        p, q = (each / each.sum() for each in counts)
        found[row] = float((p * np.log(p / q)).sum())
    return found


def klom_above_null(
    unlearned: np.ndarray, retrained: np.ndarray, null: np.ndarray, bins: int = BINS
) -> dict[str, float]:
    """Returns KLOM of unlearned models less that of other retrained ones (`null`), with its 95% interval over models.

    All are margins [models, rows], of as many models each, so the bias of the estimate is the same and drops out: for
    models that were retrained themselves the difference is 0 up to chance. Rows share their models, so the interval is
    not one over rows: it is Student's t with the jackknife's standard error, leaving out one model of each kind at a
    time. Raises `LuthierError` for other than equal numbers of at least 3 models.
    """
    count = len(unlearned)
    if count < LEAST or len(retrained) != count or len(null) != count:
        told = ", ".join(str(len(each)) for each in (unlearned, retrained, null))
        raise LuthierError(f"KLOM is of {told} models; expected as many of each, and at least {LEAST}.")
    raw, chance = klom(unlearned, retrained, bins).mean(), klom(null, retrained, bins).mean()
    without = []
    for one in range(count):
        left, right, other = (np.delete(each, one, 0) for each in (unlearned, retrained, null))
        without.append((klom(left, right, bins) - klom(other, right, bins)).mean())
    error = np.sqrt((count - 1) * np.var(without))
    reach = student.quantile(0.95, count - 1) * error
    apart = float(raw - chance)
    span = {"low": apart - float(reach), "high": apart + float(reach)}
    return {"klom": float(raw), "null": float(chance), "above null": apart, **span}


def margins(losses: np.ndarray) -> np.ndarray:
    """Returns log(p / (1 - p)) of p = exp(-loss), of any shape: a classifier's logit of the right class less the
    log-sum-exp of the others."""
    least = np.maximum(losses, SMALLEST)
    return -least - np.log(-np.expm1(-least))


def membership(members: np.ndarray, others: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Returns the AUC of telling learned rows from new ones by their losses, with its 95% interval; 0.5 is chance.

    The probability that a member's loss is the lower one, ties counting half.
    """
    draw = np.random.default_rng(seed)
    samples = [
        auc(members[draw.integers(0, len(members), len(members))], others[draw.integers(0, len(others), len(others))])
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(samples, [0.025, 0.975])
    return {"auc": auc(members, others), "low": float(low), "high": float(high)}


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Returns P(loss of a member < loss of another row) + ½ P(equal)."""
    ordered = np.sort(others)
    above = len(others) - np.searchsorted(ordered, members, "right")
    equal = np.searchsorted(ordered, members, "right") - np.searchsorted(ordered, members, "left")
    return float((above + 0.5 * equal).mean() / len(others))
