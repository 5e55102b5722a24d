"""TwoNN: the intrinsic dimension of a cloud of points from the ratios of its two nearest-neighbour distances.

Facco, d'Errico, Rodriguez, Laio 2017, doi 10.1038/s41598-017-11873-y. On a d-dimensional manifold of locally constant
density μ = r₂/r₁ follows a Pareto law of shape d: log μ is exponential with rate d.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.errors import LuthierError, near
from luthier.core.numerics.neighbours import MEMORY, Track, checked, distinct, neighbours

FEWEST = 10
"""Distinct points below which no dimension is estimated."""
BATCH = 2**20  # ratios that are sorted at once


@dataclass(frozen=True)
class Dimension:
    """An estimate with its bootstrap interval: 95% in name, nearer 85% on clouds without bias (docs/dimension.md).

    Ratios of neighbouring points depend on each other, and resampling them one by one does not see it. Nor does the
    interval hold the method's bias, which grows with the dimension.
    """

    value: float
    low: float
    high: float
    points: int
    """Distinct points that it rests on."""
    duplicates: int
    """Points left out because they repeat another exactly."""
    method: str


def intrinsic_dimension(
    points: Tensor,
    *,
    method: str = "mle",
    discard: float = 0.1,
    resamples: int = 200,
    seed: int = 0,
    memory: int = MEMORY,
    track: Track = iter,
) -> Dimension:
    """Estimates TwoNN's dimension of the points [n, d], with a 95% interval by bootstrap over the ratios.

    `method` is "mle" (censored maximum likelihood) or "fit" (Facco's line); `discard` is the share of largest ratios
    that is left out; `memory` and `track` go to `neighbours`. LuthierError if the points are no finite matrix, or
    fewer than 10 of them are distinct.
    """
    estimator(method)
    points = checked(points)
    kept = distinct(points)
    duplicates = len(points) - len(kept)
    if len(kept) < FEWEST:
        found = f"{len(kept)} distinct points ({duplicates} duplicates dropped)"
        raise LuthierError(f"{found} tell no dimension; {FEWEST} are the fewest, hundreds are useful.")
    mu = ratios(points[kept] if duplicates else points, memory=memory, track=track)
    low, high = interval(draws(mu, method=method, discard=discard, resamples=resamples, seed=seed))
    value = float(estimator(method)(mu, discard))
    return Dimension(value, low, high, len(kept), duplicates, method)


def ratios(points: Tensor, *, memory: int = MEMORY, track: Track = iter) -> Tensor:
    """μ = r₂/r₁ [n], float64 on the CPU, of distinct points [n, d] (see `distinct`)."""
    nearest, second = neighbours(points, 2, memory=memory, track=track).cpu().unbind(1)
    zero = int((nearest == 0).sum())
    if zero:
        raise LuthierError(f"{zero} of {len(points)} points have another at distance 0; keep points[distinct(points)].")
    return second / nearest


def mle(ratios: Tensor, discard: float = 0.1) -> Tensor:
    """d = (k - 1) / (Σ log μ + (N - k) log μ₍k₎) [...] over the k smallest of N ratios [..., N], the rest censored.

    Unbiased when log μ is exponential; k = int(N (1 - discard)), as in scikit-dimension.
    """
    kept, beyond = smallest(ratios, discard)
    return (kept.shape[-1] - 1) / (kept.sum(-1) + beyond * kept[..., -1])


def fit(ratios: Tensor, discard: float = 0.1) -> Tensor:
    """Slope [...] through the origin of -log(1 - F) on log μ, F = i/N, over the k smallest of N ratios [..., N].

    Facco's line. k = int(N (1 - discard)), as in scikit-dimension, and at most N - 1: F = 1 lies at infinity.
    """
    kept, beyond = smallest(ratios, discard)
    total = kept.shape[-1] + beyond
    x = kept[..., : total - 1]
    y = -torch.log1p(-torch.arange(1, x.shape[-1] + 1, dtype=x.dtype) / total)
    return (x @ y) / x.square().sum(-1)


METHODS: Mapping[str, Callable[[Tensor, float], Tensor]] = {"mle": mle, "fit": fit}


def estimator(method: str) -> Callable[[Tensor, float], Tensor]:
    """Returns the function of that name."""
    if method not in METHODS:
        raise LuthierError(f"no way to estimate a dimension is called {method!r}{near(method, METHODS)}")
    return METHODS[method]


def smallest(ratios: Tensor, discard: float) -> tuple[Tensor, int]:
    """log μ of the kept ratios [..., k], ascending, and how many lie beyond them."""
    if not 0 <= discard < 1:
        raise LuthierError(f"discard is {discard}; it is the share of ratios left out, at least 0 and below 1.")
    total = ratios.shape[-1]
    count = int(total * (1 - discard))
    if count < 2:
        raise LuthierError(f"{count} of {total} ratios are left at discard {discard}; 2 are the fewest.")
    kept = ratios.double().sort(-1).values[..., :count].log()
    if not bool((kept[..., -1] > 0).all()):
        raise LuthierError("each kept point has two neighbours at one distance, as on a grid: no dimension follows.")
    return kept, total - count


def draws(ratios: Tensor, *, method: str = "mle", discard: float = 0.1, resamples: int = 200, seed: int = 0) -> Tensor:
    """Bootstrap estimates [resamples] from ratios [n] drawn with replacement; the points' neighbours stay as they are.

    The r-th draw takes the same indices for the same (n, seed): the draws of several clouds of the same n points (the
    layers of a model) are joint.
    """
    if resamples < 2:
        raise LuthierError(f"resamples is {resamples}; an interval takes at least 2, and 200 is usual.")
    generator = torch.Generator().manual_seed(seed)
    estimate, n = estimator(method), len(ratios)
    rows = max(1, BATCH // n)
    counts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return torch.cat([estimate(ratios[torch.randint(n, (c, n), generator=generator)], discard) for c in counts])


def interval(draws: Tensor) -> tuple[float, float]:
    """Returns the middle 95% of the draws."""
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return low, high
