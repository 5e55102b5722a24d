"""Intervals and paired tests: what may be said of scores, and what may not.

The difference D of two methods on the same seeds and test rows varies with both draws, so its interval has both: of
[l_s, u_s] over seeds (Student's t) and [l_r, u_r] over redrawn rows (bootstrap) it is

    D - √((D - l_s)² + (D - l_r)²)   to   D + √((u_s - D)² + (u_r - D)²)      (Zou and Donner 2008)

and p is the least α at which it leaves out nought. That each of the two leaves out nought by itself would not do: where
both sources are as large, that happens by chance to one of ten studies without a difference, and not of twenty.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.comparing.measures import power
from luthier.comparing.measures.bootstrap import redrawn, sizes
from luthier.comparing.measures.power import EQUAL
from luthier.comparing.record import Record
from luthier.core.numerics import student
from luthier.core.numerics.resampling import exact_interval, unseen

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; NaN bounds where nothing can be said of them."""

    value: float
    low: float
    high: float
    over: str
    """`seeds` (Student's t), `rows` (bootstrap over test rows, exact where all are alike), `both`, `nothing`."""


@dataclass(frozen=True)
class Paired:
    """A difference of two methods on the same seeds and rows."""

    first: str
    second: str
    difference: float
    """Mean score of the first less that of the second, over the seeds that both have."""
    seeds: int
    by_seed: Interval
    """Student's t over the differences of each seed."""
    by_row: Interval
    """Bootstrap over the test rows: differences of the scores on redrawn rows, the mean over seeds."""
    both: Interval
    """Over seeds and rows together (`over_both`)."""
    p: float
    """Of a difference of nought, over seeds and rows together; over the one that can be had where the other cannot, and
    NaN where neither can."""
    adjusted: float
    """`p` after Holm's correction, among the tests of all pairs; `p` itself for one test alone."""
    detectable: float = math.nan
    """The smallest true difference that so many seeds and rows would tell in four of five studies, at the strictest
    level that the correction may ask; NaN where neither seeds nor rows have a spread."""


@dataclass(frozen=True)
class Verdict:
    """Who is best, if anyone may be called so."""

    winner: str | None
    """The method that beats every other in a paired test, Holm-corrected; None where one does not."""
    best: str
    """The highest mean score, whatever the tests say."""
    tests: list[Paired]
    """The best against every other method."""
    pairs: list[Paired]
    """Every two methods, those of `tests` first."""
    reason: str
    """Why there is a winner, or none."""


# --- intervals -------------------------------------------------------------------------------------


def over_seeds(scores: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns the mean of a method's runs, with Student's t interval.

    Without bounds for fewer than two runs, and for runs that agree to the digit: seeds that change nothing, or a coarse
    metric, tell nothing of the spread.
    """
    mean, error = _mean(scores), _error(scores)
    if len(scores) < 2 or constant(scores):
        return Interval(mean, math.nan, math.nan, "nothing")
    reach = student.quantile(level, len(scores) - 1) * error
    return Interval(mean, mean - reach, mean + reach, "seeds")


def constant(values: Sequence[float]) -> bool:
    """Returns whether several values are equal, except for rounding."""
    return len(values) > 1 and max(values) - min(values) <= EQUAL


def over_rows(value: float, draws: np.ndarray, level: float = LEVEL) -> Interval:
    """Returns a score with the percentile interval of its bootstrap `draws`.

    Without bounds where there are none, and where they have no spread: redrawn rows that are alike prove nothing of
    others.
    """
    import numpy as np

    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) if len(draws) else (math.nan, math.nan)
    if not high - low > EQUAL:
        return Interval(value, math.nan, math.nan, "nothing")
    return Interval(value, float(low), float(high), "rows")


def over_both(seeds: Interval, rows: Interval) -> Interval:
    """Returns the interval of a difference over seeds and rows together; the one that has bounds where only one has."""
    if math.isnan(seeds.low) or math.isnan(rows.low):
        return seeds if math.isnan(rows.low) else dataclasses.replace(rows, value=seeds.value)
    value = seeds.value
    low, high = math.hypot(value - seeds.low, value - rows.low), math.hypot(seeds.high - value, rows.high - value)
    return Interval(value, value - low, value + high, "both")


def score_of(runs: Sequence[Record], level: float = LEVEL) -> Interval:
    """Returns the score of one method on one data set: over seeds, or over rows where seeds tell no spread (one alone,
    or several that agree to the digit); without bounds where neither has a spread that says something."""
    import numpy as np

    scores = [run.score for run in runs]
    if len(scores) > 1 and not constant(scores):
        return over_seeds(scores, level)
    value, draws = _mean(scores), redrawn(runs)
    together = np.mean(draws, axis=0) if all(map(len, draws)) else np.zeros(0)
    return _alike(runs, value, level) or over_rows(value, together, level)


def _alike(runs: Sequence[Record], value: float, level: float) -> Interval | None:
    """Of runs whose every part is right on all rows, or on none: exact bounds, their mean; None of any other."""
    import numpy as np

    parts = [exact_interval(np.asarray(part), (1 - level) / 2) for run in runs for part in run.hits.values()]
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return Interval(value, _mean([low for low, _ in known]), _mean([high for _, high in known]), "rows")


# --- paired tests ----------------------------------------------------------------------------------


def paired(
    first: Sequence[Record],
    second: Sequence[Record],
    level: float = LEVEL,
    draws: Draws | None = None,
    tests: int = 1,
) -> Paired:
    """Two methods on one model and data set, compared on the seeds that both have; none in common gives NaN.

    `draws` are `draws_of` at least these runs, made here unless given; `tests` are made beside and with this one.
    """
    known = draws_of([*first, *second]) if draws is None else draws
    left, right = ({run.seed: run for run in runs} for runs in (first, second))
    pairs = [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]
    differences = [a.score - b.score for a, b in pairs]
    by_seed, rows = over_seeds(differences, level), row_differences(pairs, known)
    by_row = dataclasses.replace(rows_apart(pairs, rows, level), value=by_seed.value)
    p = both_p(pairs, rows)
    strictest = 1 - (1 - level) / tests
    seen = power.together(power.by_seeds(differences, strictest), power.by_rows(rows, strictest))
    both = over_both(by_seed, by_row)
    return Paired(first[0].method, second[0].method, both.value, len(pairs), by_seed, by_row, both, p, p, seen)


Draws = Mapping[tuple[str, int], "np.ndarray"]
"""By method and seed, the scores of a run on redrawn rows."""


def draws_of(runs: Iterable[Record]) -> Draws:
    """Returns the bootstrap of every run, of one model and data set."""
    every = list(runs)
    return {(run.method, run.seed): drawn for run, drawn in zip(every, redrawn(every), strict=True)}


def row_differences(pairs: Sequence[tuple[Record, Record]], draws: Draws) -> np.ndarray:
    """[RESAMPLES] differences on redrawn rows, averaged over the pairs; empty where rows are not the same."""
    import numpy as np

    found = [draws[run.method, run.seed] for pair in pairs for run in pair]
    rows = [sizes(run) for pair in pairs for run in pair]
    if not found or any(size != rows[0] for size in rows) or not all(map(len, found)):
        return np.zeros(0)
    return np.mean(found[::2], axis=0) - np.mean(found[1::2], axis=0)


def rows_apart(pairs: Sequence[tuple[Record, Record]], draws: np.ndarray, level: float = LEVEL) -> Interval:
    """Returns the interval over rows of a difference, of its `draws`.

    Rows on which methods differ by as much, as by nothing, have redrawn rows without a spread, which proves nothing of
    others: a share d of other rows shows none of them among n with probability (1 - d)^n, and scores of rows from 0 to
    1 differ by 1 at most. Of scores that are not a mean of such rows (Matthews' correlation) nothing is said then.
    """
    found = over_rows(float(draws.mean()) if len(draws) else math.nan, draws, level)
    count, v = _fewest(pairs), found.value
    if not math.isnan(found.low) or not len(draws) or not all(_in_shares(run) for pair in pairs for run in pair):
        return found
    if abs(v) <= EQUAL:
        return Interval(v, -unseen(count, 1 - level), unseen(count, 1 - level), "rows")
    d, down, up = unseen(count, (1 - level) / 2), max(0.0, 1 + v), max(0.0, 1 - v)
    return Interval(v, v - d * down, v + d * up, "rows")


def _in_shares(run: Record) -> bool:
    """Whether the score of a run is a mean of rows that have one from 0 to 1 each."""
    return bool(run.hits) and all(part and min(part) >= 0 and max(part) <= 1 for part in run.hits.values())


def _fewest(pairs: Sequence[tuple[Record, Record]]) -> int:
    """The rows of the smallest part of the test."""
    return min(sizes(pairs[0][0]).values(), default=0) if pairs else 0


def seed_p(differences: Sequence[float]) -> float:
    """Two-sided p of a mean of zero by Student's t; NaN for fewer than two differences, and for equal ones.

    Differences that agree to the digit tell nothing of the spread: seeds that changed nothing, or a coarse metric.
    """
    if len(differences) < 2 or constant(differences):
        return math.nan
    return student.two_sided(_mean(differences) / _error(differences), len(differences) - 1)


def row_p(draws: np.ndarray, rows: int = 0) -> float:
    """Two-sided p of a mean of zero by the bootstrap (Davison and Hinkley 1997, 4.4); NaN without draws.

    Of so many `rows` that all differ by v, redrawing says the least p there is; here it is that of the interval of
    `rows_apart`, 2 (1 + |v|)^-rows: the sign test's, where one method is right on all rows and the other on none.
    """
    if not len(draws):
        return math.nan
    below, above = int((draws <= EQUAL).sum()), int((draws >= -EQUAL).sum())
    least = 2 * (1 + min(1.0, abs(float(draws[0])))) ** -rows if rows and constant([draws.min(), draws.max()]) else 0.0
    return min(1.0, max(least, 2 * (min(below, above) + 1) / (len(draws) + 1)))


def both_p(pairs: Sequence[tuple[Record, Record]], draws: np.ndarray) -> float:
    """Two-sided p of a mean of zero over seeds and rows together: the least α whose interval leaves out zero.

    `draws` are the pairs' differences on redrawn rows; where these say nothing (`rows_apart`), the seeds decide alone.
    """
    differences = [a.score - b.score for a, b in pairs]
    told = not math.isnan(rows_apart(pairs, draws).low)
    by_seed, by_row = seed_p(differences), row_p(draws, _fewest(pairs)) if told else math.nan
    if math.isnan(by_seed) or math.isnan(by_row):
        return by_row if math.isnan(by_seed) else by_seed
    import numpy as np

    draws, sure, unsure = np.sort(draws), 0.0, 1.0
    while unsure - sure > 1e-9:
        level = (sure + unsure) / 2
        found = over_both(over_seeds(differences, level), rows_apart(pairs, draws, level))
        sure, unsure = (level, unsure) if found.low > 0 or found.high < 0 else (sure, level)
    return max(1 - sure, by_seed, by_row)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given; NaN counts as 1."""
    filled = [1.0 if math.isnan(p) else p for p in values]
    order = sorted(range(len(filled)), key=filled.__getitem__)
    adjusted, running = [0.0] * len(filled), 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(filled) - place) * filled[index]))
        adjusted[index] = running
    return adjusted


def winner(runs: Mapping[str, Sequence[Record]], level: float = LEVEL) -> Verdict:
    """Returns the best of the methods on one model and data set, `{method: its runs}`, if its lead is more than chance.

    Every two methods are tested (`paired`), the p-values of all pairs are corrected by Holm, and a winner is named
    only where its lead over every other is significant, with at least two seeds in common. All pairs count, and not
    those of the best alone, since which method is best was read off the same scores.
    """
    means = {name: _mean([run.score for run in each]) for name, each in runs.items()}
    best = max(means, key=lambda name: -math.inf if math.isnan(means[name]) else means[name])
    draws = draws_of(run for each in runs.values() for run in each)
    pairs = [(best, name) for name in runs if name != best]
    pairs += list(itertools.combinations([name for name in runs if name != best], 2))
    found = [paired(runs[a], runs[b], level, draws, len(pairs)) for a, b in pairs]
    corrected = holm([each.p for each in found])
    found = [dataclasses.replace(t, adjusted=p) for t, p in zip(found, corrected, strict=True)]
    tests = found[: len(runs) - 1]
    reason = _against(best, tests, 1 - level)
    return Verdict(None if reason else best, best, tests, found, reason or _for(best, tests))


def _against(best: str, tests: Sequence[Paired], alpha: float) -> str:
    """Why the best is not a winner; nothing where it is one."""
    if not tests:
        return "one method alone: nothing to compare it with"
    few = [test.second for test in tests if test.seeds < 2]
    if few:
        return f"{best} and {few[0]} have fewer than two seeds in common, so the training's own spread is not known"
    unknown = [test for test in tests if math.isnan(test.p)]
    if unknown:
        return f"nothing can be said of {best} and {unknown[0].second}: no spread over the seeds, and no rows to test"
    close = [test for test in tests if not (test.adjusted < alpha and test.difference > 0)]
    if close:
        nearest = max(close, key=lambda test: test.adjusted)
        if abs(nearest.difference) <= EQUAL:
            return f"{best} and {nearest.second} score the same"
        others = f" and {len(close) - 1} more" if len(close) > 1 else ""
        return f"{best} leads, but its lead over {nearest.second}{others} may be chance (p = {nearest.adjusted:.2g})"
    return ""


def _for(best: str, tests: Sequence[Paired]) -> str:
    worst = max(tests, key=lambda test: test.adjusted)
    return f"{best} beats every other method, Holm-corrected p at most {worst.adjusted:.2g} (against {worst.second})"


# --- helpers ---------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    mean, count = _mean(values), len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count) if count > 1 else math.nan
