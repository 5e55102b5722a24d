"""Several answers to each prompt: how often at least one of k is right."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from luthier.core.errors import LuthierError


def at_k(right: int, samples: int, k: int) -> float:
    """Returns 1 - C(n - c, k) / C(n, k): the chance that k of n answers, c of them right, hold a right one.

    It rises with k. Of exact matches it is EM@k, of passed tests pass@k (Chen et al. 2021, arXiv 2107.03374).
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise LuthierError(f"of {samples} answers, {right} right, {k} cannot be drawn.")
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def sizes(samples: int) -> list[int]:
    """Returns the k that are told: 1, 2, 5, 10, 20, 50, … up to the number of answers, which is the last."""
    found = [k for power in range(7) for k in (10**power, 2 * 10**power, 5 * 10**power) if k < samples]
    return [*found, samples]


def named(metric: str, rights: Sequence[int], samples: int) -> dict[str, list[float]]:
    """Returns `{"exact_match@5": one number a row}` for each k, from how many answers of each row are right."""
    return {f"{metric}@{k}": [at_k(right, samples, k) for right in rights] for k in sizes(samples)}
