"""Student's t for whole degrees of freedom, by its closed form (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any


def inside(t: Any, freedom: int) -> Any:
    """P(|T| <= t) at `freedom` degrees of freedom, of one number or of an array."""
    import numpy as np

    angle = np.arctan2(np.abs(t), math.sqrt(freedom))
    sine, cosine = np.sin(angle), np.cos(angle)
    if freedom == 1:
        return 2 * angle / math.pi
    odd = freedom % 2
    term = total = cosine if odd else np.ones_like(cosine)
    for k in range(2 + odd, freedom - 1, 2):
        term = term * cosine * cosine * (k - 1) / k
        total = total + term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def two_sided(t: float, freedom: int) -> float:
    """P(|T| >= t); NaN of NaN."""
    return math.nan if math.isnan(t) else max(0.0, 1 - float(inside(t, freedom)))


@functools.cache
def quantile(level: float, freedom: int) -> float:
    """Returns the t that |T| stays below with probability `level`."""
    return _root(lambda t: float(inside(t, freedom)), level)


@functools.cache
def noncentrality(level: float, freedom: int, power: float) -> float:
    """Returns the mean of T's numerator, in its standard errors, at which |T| passes `quantile(level, freedom)` with
    probability `power`: λ with P(|Z + λ| > t·√(V / ν)) = power, Z standard normal, V chi-square of ν = `freedom`.
    """
    import numpy as np
    import torch

    critical = quantile(level, freedom)
    scale = np.linspace(1e-4, 1 + 8 / math.sqrt(freedom), 4001)  # √(V / ν), whose spread is about 1 / √(2ν)
    log_density = (freedom - 1) * np.log(scale) - freedom * scale**2 / 2
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    below, above = (torch.from_numpy(sign * critical * scale) for sign in (-1, 1))

    def passes(mean: float) -> float:
        outside = torch.special.ndtr(below - mean) + torch.special.ndtr(mean - above)
        return float(outside.numpy() @ density)

    return _root(passes, power)


def _root(rising: Callable[[float], float], wanted: float) -> float:
    low, high = 0.0, 1.0
    while rising(high) < wanted:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2
