"""Seeds until methods are told apart or shown level: a sequential test that keeps its error rate.

Looking again after every seed until something turns up tells chance for truth. So every look uses one stricter level,
c, at which all looks together err no more often than one test at α would (Pocock 1977), α being .05 over the pairs of
methods on a model and data set (Bonferroni). The t statistics of a difference of nought follow a law of their own,
whatever the spread, so c is drawn from that law and holds for few seeds too. After each seed, of two methods, with the
1 - c interval of their difference over seeds and test rows together (`significance.over_both`),

    apart   it leaves out nought
    level   it lies within ± the margin (stated before), in which two methods are as good as one
    rows    the seeds alone would say either, the test rows alone say neither: no seed can mend it
    open    otherwise; both methods get another seed
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.comparing.measures.significance import (
    LEVEL,
    Draws,
    Interval,
    constant,
    draws_of,
    over_both,
    over_seeds,
    row_differences,
    rows_apart,
)
from luthier.comparing.record import Record, groups
from luthier.core.numerics import student
from luthier.core.records import recorded

FILE = "until.json"
"""In a study's folder: what the last look said."""
STUDIES, SEED = 200_000, 0
"""Studies without a difference that are drawn to find the level of a look, and their seed."""


@dataclass(frozen=True)
class Looks:
    """When one looks: after `first` seeds, and each further one up to `last`."""

    first: int
    last: int


@dataclass(frozen=True)
class Decision:
    """What may be said of two methods on a model and data set."""

    model: str
    data: str
    first: str
    second: str
    difference: float
    """Mean score of the first less that of the second."""
    low: float
    high: float
    """The interval over seeds and test rows at the level of a look."""
    seeds: int
    outcome: str
    """apart, level, rows or open."""

    @property
    def sentence(self) -> str:
        """The difference, its interval and the outcome."""
        said = {
            "apart": "told apart",
            "level": "level within the margin",
            "rows": "not to be told by more seeds: the test has too few rows",
            "open": "not told yet",
        }[self.outcome]
        among = f"{self.low:+.4f} to {self.high:+.4f}, {self.seeds} seeds"
        return f"{self.first} less {self.second} is {self.difference:+.4f} ({among}): {said}."

    def __str__(self) -> str:
        return f"{self.model} on {self.data}: {self.sentence}"


@functools.cache
def level_of_a_look(looks: Looks, alpha: float) -> float:
    """Returns the c at which a difference of nought is ever called one with probability `alpha`, over all looks."""
    import numpy as np

    drawn = np.random.default_rng(SEED).standard_normal((STUDIES, looks.last), dtype=np.float32)
    least = np.ones(STUDIES)
    for seeds in range(looks.first, looks.last + 1):
        seen = drawn[:, :seeds]
        t = seen.mean(1) / seen.std(1, ddof=1) * math.sqrt(seeds)
        least = np.minimum(least, 1 - student.inside(t.astype(float), seeds - 1))
    return float(np.quantile(least, alpha))


def outcome(seeds: Interval, rows: Interval, margin: float) -> str:
    """Returns what a look says, of the difference's intervals over seeds and over rows, or seeds alone."""
    if math.isnan(seeds.low):
        return "open"
    if math.isnan(rows.low) and seeds.low == seeds.high:  # no seed changes anything, and the rows say nothing
        return "rows"
    both, alone, row = (said(each.low, each.high, margin) for each in (over_both(seeds, rows), seeds, rows))
    return min(both, default="rows" if alone and not (row or math.isnan(rows.low)) else "open")


def said(low: float, high: float, margin: float) -> set[str]:
    """Returns what an interval says alone: apart, level, both (a difference that is sure and small), or nothing."""
    found = {"apart"} if low > 0 or high < 0 else set()
    return found | ({"level"} if -margin < low and high < margin else set())


def decisions(runs: Iterable[Record], margin: float, looks: Looks) -> list[Decision]:
    """Returns what may be said of every two methods of every model and data set, by the runs so far."""
    return [decision for group in groups(runs).values() for decision in _group(group, margin, looks)]


def _group(group: Mapping[str, Sequence[Record]], margin: float, looks: Looks) -> list[Decision]:
    pairs = list(itertools.combinations(group, 2))
    level = level_of_a_look(looks, (1 - LEVEL) / max(1, len(pairs)))
    draws = draws_of(run for runs in group.values() for run in runs)
    return [_decision(group[a], group[b], draws, margin, level) for a, b in pairs]


def _decision(first: Sequence[Record], second: Sequence[Record], draws: Draws, margin: float, level: float) -> Decision:
    left, right = ({run.seed: run for run in runs if not math.isnan(run.score)} for runs in (first, second))
    pairs = [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]
    seeds = _over_seeds([(a.score, b.score) for a, b in pairs], level)
    rows = rows_apart(pairs, row_differences(pairs, draws), 1 - level)
    names, found = (first[0].model, first[0].data, first[0].method, second[0].method), over_both(seeds, rows)
    return Decision(*names, seeds.value, found.low, found.high, len(pairs), outcome(seeds, rows, margin))


def _over_seeds(scores: Sequence[tuple[float, float]], level: float) -> Interval:
    """Of methods that no seed changes the rows decide alone; else a coarse score has hit the same number by chance,
    which says nothing."""
    found = over_seeds([a - b for a, b in scores], 1 - level)
    if constant([a - b for a, b in scores]) and constant([a for a, _ in scores]):
        return Interval(found.value, found.value, found.value, "seeds")
    return found


def wanting(found: Iterable[Decision]) -> set[tuple[str, str, str]]:
    """Returns (model, data, method) of what another seed may tell something of."""
    return {
        (each.model, each.data, name) for each in found if each.outcome == "open" for name in (each.first, each.second)
    }


def decided(folder: Path) -> list[Decision]:
    """Returns what the last look at a study said; nothing where nobody looked."""
    if not (folder / FILE).is_file():
        return []
    with recorded(folder / FILE) as told:
        return [Decision(**each) for each in told["decisions"]]
