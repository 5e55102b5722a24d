"""Adapt-∞: from every skill, rows across the whole range of the score that tells that skill's rows apart best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts.selection import Selection, Taken
from luthier.core.errors import LuthierError
from luthier.methods.selections._embedded import clusters

if TYPE_CHECKING:
    import numpy as np

BINS = 50
"""Bins of the histogram whose entropy is compared."""
BLOCK = 10_000_000
"""Cosines that are held at a time."""


@dataclass(frozen=True)
class AdaptInf(Selection):
    """clusters = k-means(g_i / ‖g_i‖); per cluster CCS over the scorer argmax_s H(histogram of s)

    g_i is the gradient of row i, projected. Of rows whose gradients have a cosine above `same`, all but the first are
    redundant: they are not taken, and leave a pool that is kept (`luthier select --state`) for good. A
    cluster's budget is an equal share, or all of its rows where it has fewer, so that budgets sum to what was asked.
    The scorers are the loss (log perplexity), EL2N (the norm of p - y), the entropy of p, the gradient's norm and the
    answer's length; H is taken over 50 equal bins between a scorer's least and greatest value in standard deviations,
    at most 4 from the mean. CCS cuts the 5% of rows at either end, divides the rest into equal ranges of the score
    and draws an equal share of each; the ends are drawn from where the rest is too few.

    The authors' histogram has bins of the raw scale for scaled values, budgets that are rounded up, and removes a set
    share of the rows of each cluster as duplicates; here bins fit, budgets sum exactly and a threshold decides, over
    all rows, since a pair on the border of two clusters would stay, and go once the clusters move. The last score of a
    row is its place in its cluster's scorer, from 0 to 1.
    """

    paper = (
        "Maharana et al. 2025, arXiv 2410.10636; code adymaharana/adapt-inf; CCS: Zheng et al. 2023, arXiv 2210.15809"
    )
    targeted = False

    clusters: int = 20
    """Clusters of k-means, k."""
    same: float = 0.99
    """Cosine of two gradients above which the later row is redundant; 1: none is."""
    strata: int = 10
    """Ranges of the score that CCS draws from."""
    cut: float = 0.05
    """Share of a cluster's rows at either end of the score that CCS leaves out."""
    size: int = 1024
    """Numbers of a projected gradient, a square."""

    def check(self) -> None:
        from math import isqrt

        for name in ("clusters", "strata", "size"):
            self.above(name, 0)
        self.within("same", -1, 1)
        self.within("cut", 0, 0.49)
        if isqrt(self.size) ** 2 != self.size:
            raise LuthierError(f"adapt_inf.size is {self.size}; expected a square number, as {isqrt(self.size) ** 2}.")

    @property
    def reads_rows(self) -> bool:
        """Always: gradients and figures."""
        return True

    def score(self, pool):
        return self.take(pool, 1).scores

    def take(self, pool, rows):
        import numpy as np

        model = pool.read("adapt_inf")
        gradients = np.asarray(model.gradients(pool.examples, self.size, pool.seed), float)
        norms = np.linalg.norm(gradients, axis=1)
        directions = gradients / norms[:, None].clip(min=1e-12)
        scorers = dict(model.figures(pool.examples)) | {"gradient": norms}
        which = clusters(directions, self.clusters, pool.seed, "adapt_inf")
        groups = [np.flatnonzero(which == c) for c in range(which.max() + 1)]
        gone = redundant(directions, self.same)
        kept = [np.setdiff1d(group, gone) for group in groups]
        shares = budgets([len(group) for group in kept], rows, len(pool.examples) - len(gone))
        scores, places = np.zeros(len(which)), []
        for number, (group, share) in enumerate(zip(kept, shares, strict=True)):
            values = np.asarray(best_scorer(scorers, group)[1], float)
            scores[group] = ranked(values)
            draw = np.random.default_rng([pool.seed, number])
            places += [int(group[i]) for i in ccs(values, share, self.strata, self.cut, draw)]
        return Taken(sorted(places, key=lambda i: (-scores[i], i)), scores, sorted(gone))


def redundant(directions: np.ndarray, same: float) -> list[int]:
    """The rows whose cosine with an earlier kept row is above `same`, in order."""
    import numpy as np

    gone: set[int] = set()
    if same >= 1:
        return []
    size = max(1, BLOCK // len(directions))
    for start in range(0, len(directions), size):
        near = directions[start : start + size] @ directions[start:].T > same
        for i, row in enumerate(near, start):
            if i not in gone:
                gone.update(int(j) + start for j in np.flatnonzero(row) if j + start > i)
    return sorted(gone)


def budgets(sizes: Sequence[int], budget: int, whole: int) -> list[int]:
    """Equal shares of `budget`, at most each size, that sum to it; raises where all together have fewer."""
    if budget > whole:
        raise LuthierError(f"cannot take {budget:,} rows: {whole:,} are left once those that repeat others are out.")
    order, found, left = sorted(range(len(sizes)), key=lambda i: sizes[i]), [0] * len(sizes), budget
    for number, i in enumerate(order):
        found[i] = min(sizes[i], left // (len(order) - number))
        left -= found[i]
    for i in reversed(order):  # what whole numbers left over
        more = min(left, sizes[i] - found[i])
        found[i], left = found[i] + more, left - more
    return found


def entropy(values: np.ndarray) -> float:
    """The entropy in bits of the histogram of standardised values; 0 where all are equal."""
    import numpy as np

    spread = values.std()
    if len(values) < 2 or spread < 1e-12:
        return 0.0
    counts, _ = np.histogram(((values - values.mean()) / spread).clip(-4, 4), BINS)
    p = counts[counts > 0] / len(values)
    return float(-(p * np.log2(p)).sum())


def best_scorer(scorers: Mapping[str, np.ndarray], group: np.ndarray) -> tuple[str, np.ndarray]:
    """(name, values) of the scorer whose histogram over the group has most entropy, of equal ones the first."""
    return max(((name, values[group]) for name, values in scorers.items()), key=lambda each: entropy(each[1]))


def ranked(values: np.ndarray) -> np.ndarray:
    """The place of each value among them, from 0 to 1."""
    import numpy as np

    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return order / max(len(values) - 1, 1)


def ccs(values: np.ndarray, budget: int, strata: int, cut: float, draw: np.random.Generator) -> list[int]:
    """Draws exactly `budget` places: an equal share of each range of the values between both cut ends, the ranges with
    fewest rows first; where these are too few, the rest from the ends."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    ends = int(cut * len(order))
    inner = order[ends : len(order) - ends]
    found: list[int] = []
    if len(inner):
        low, high = values[inner[0]], values[inner[-1]]
        which = np.minimum(((values[inner] - low) / ((high - low) or 1.0) * strata).astype(int), strata - 1)
        groups = [inner[which == s] for s in range(strata)]
        shares = budgets([len(group) for group in groups], min(budget, len(inner)), len(inner))
        for group, share in zip(groups, shares, strict=True):
            found += draw.choice(group, share, replace=False).tolist()
    outer = np.setdiff1d(order, inner)
    return found + draw.choice(outer, budget - len(found), replace=False).tolist()
