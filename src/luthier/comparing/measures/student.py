"""Student's t for whole degrees of freedom, in closed form (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""

from __future__ import annotations

import math


def inside(t: float, freedom: int) -> float:
    """P(|T| <= t) at `freedom` degrees of freedom."""
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom == 1:
        return 2 * angle / math.pi
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def two_sided(t: float, freedom: int) -> float:
    """P(|T| >= t); NaN of NaN."""
    return math.nan if math.isnan(t) else max(0.0, 1 - inside(t, freedom))


def quantile(level: float, freedom: int) -> float:
    """Returns the t that |T| stays below with probability `level`."""
    low, high = 0.0, 1.0
    while inside(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle, freedom) < level else (low, middle)
    return (low + high) / 2
