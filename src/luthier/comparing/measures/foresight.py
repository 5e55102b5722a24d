"""What a study could show, foreseen from its first seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from luthier.comparing.measures import power
from luthier.comparing.measures.significance import LEVEL, Draws, draws_of, row_differences
from luthier.comparing.record import Group, Record, groups


def foreseen(runs: Iterable[Record], seeds: int) -> list[str]:
    """Returns a line for each model and data set: the difference that `seeds` seeds and the test rows would tell in
    four of five such studies, by the spread between methods so far; nothing where there are fewer than two seeds."""
    return [line for (model, data), group in groups(runs).items() for line in _line(f"{model} on {data}", group, seeds)]


def _line(where: str, group: Group, seeds: int) -> list[str]:
    pairs = list(itertools.combinations(group.values(), 2))
    draws = draws_of(run for each in group.values() for run in each)
    level = 1 - (1 - LEVEL) / max(1, len(pairs))
    found = [each for a, b in pairs if (each := _detectable(a, b, draws, level, seeds))]
    if not found:
        return []
    by_seeds, by_rows = (_median(part) for part in zip(*found, strict=True))
    seen = power.together(by_seeds, by_rows)
    said = f"{where}: {seeds} seeds and these test rows would tell a difference of {seen:.3f} in four of five studies, "
    said += "in the median over pairs of methods; "
    if math.isnan(by_rows):
        return [f"{said}by the seeds alone, as the rows show no spread."]
    limit = "the seeds" if by_seeds >= by_rows else "the test rows"
    return [f"{said}what limits it most is {limit} (seeds alone {by_seeds:.3f}, rows alone {by_rows:.3f})."]


def _median(values: Sequence[float]) -> float:
    """The upper median of the numbers among them; NaN where there is none."""
    known = sorted(value for value in values if not math.isnan(value))
    return known[len(known) // 2] if known else math.nan


def _detectable(
    first: Sequence[Record], second: Sequence[Record], draws: Draws, level: float, seeds: int
) -> tuple[float, float] | None:
    """By seeds and by rows (NaN where rows show no spread); None where two seeds in common show none."""
    other = {run.seed: run for run in second}
    pairs = [(run, other[run.seed]) for run in first if run.seed in other]
    by_seeds = power.by_seeds([a.score - b.score for a, b in pairs], level, seeds)
    by_rows = power.by_rows(row_differences(pairs, draws), level)
    return (by_seeds, by_rows) if by_seeds == by_seeds else None
