"""The summary of one model on one data set: a row for each method, and a verdict in plain words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from luthier.comparing.measures import significance as statistics
from luthier.comparing.measures.looks import Decision
from luthier.comparing.measures.significance import LEVEL, Interval, Paired, Verdict
from luthier.comparing.record import Record, groups
from luthier.comparing.report import formatting
from luthier.core.families import ticked

LOSS = "loss"
"""Last word of what is worse when it rises; all else is a score, worse when it falls."""


@dataclass(frozen=True)
class Row:
    """One method: its runs and their means; None is what was not measured."""

    method: str
    runs: list[Record]
    score: Interval
    trainable: Interval
    bytes: Interval
    parts: dict[str, Interval]
    """The score by part of the test."""
    step_ratio: Interval | None
    peak_bytes: Interval | None
    forgetting: dict[str, Interval]
    """By what was held: how much worse it got; above nought is forgotten."""
    intruders: Interval | None
    intruders_null: Interval | None
    calibration_error: Interval | None

    @property
    def share(self) -> float:
        """Trainable parameters over all."""
        return self.trainable.value / self.runs[0].total if self.runs[0].total else 0.0

    @property
    def seeds(self) -> list[float]:
        """The score of each run that has one."""
        return [run.score for run in self.runs if formatting.known(run.score)]

    @property
    def notes(self) -> list[str]:
        """What was noted of any of its runs, once."""
        return list(dict.fromkeys(note for run in self.runs for note in run.notes))


@dataclass(frozen=True)
class Section:
    """One model on one data set."""

    model: str
    data: str
    rows: list[Row]
    """From the highest score down."""
    verdict: Verdict
    headline: str
    reasons: list[str]
    looked: list[Decision]
    """What the last look said, where seeds were added until methods are told apart."""

    @property
    def name(self) -> str:
        return f"{self.model} on {self.data}"

    @property
    def metric(self) -> str:
        return self.rows[0].runs[0].metric

    @property
    def base(self) -> Interval | None:
        """The score of the model as it came."""
        found = next((row.score for row in self.rows if not row.trainable.value), None)
        return found if found and formatting.known(found.value) else None

    @property
    def fitted(self) -> list[Row]:
        """The methods that train something and have a score."""
        return [row for row in self.rows if row.trainable.value and formatting.known(row.score.value)]

    @property
    def parts(self) -> list[str]:
        """The parts of the test."""
        return list(dict.fromkeys(part for row in self.rows for part in row.parts))

    @property
    def checklist(self) -> dict[str, bool]:
        """What an evaluation should cover, and whether the study did."""
        return checklist([run for row in self.rows for run in row.runs])

    @property
    def held(self) -> list[str]:
        """What forgetting was measured on."""
        return list(dict.fromkeys(what for row in self.rows for what in row.forgetting))


def checklist(runs: Sequence[Record]) -> dict[str, bool]:
    """Returns what an evaluation should cover, and whether these runs did."""
    preferred = any(run.metric.startswith("prefer") for run in runs)
    done = {
        "baseline": any(not run.trainable for run in runs),
        "intervals": any(run.hits or run.answers for run in runs),
        "seeds": len({run.seed for run in runs}) > 1,
        "open": preferred,
        "closed": not preferred,
        "other tasks": any(run.forgetting for run in runs),
        "calibration": any(run.calibration_error is not None for run in runs),
        "cost": any(run.step_ratio is not None or run.peak_bytes is not None for run in runs),
    }
    return ticked({item for item, has in done.items() if has})


def sections(runs: Iterable[Record], looked: Sequence[Decision] = ()) -> list[Section]:
    """Returns the runs by model and data set, in the order of the records; `looked` is what a look said of them."""
    return [
        _section(model, data, methods, [each for each in looked if (each.model, each.data) == (model, data)])
        for (model, data), methods in groups(runs).items()
    ]


def _section(model: str, data: str, methods: dict[str, list[Record]], looked: list[Decision]) -> Section:
    rows = [_row(method, runs) for method, runs in methods.items()]
    rows.sort(key=lambda row: -row.score.value if formatting.known(row.score.value) else float("inf"))
    verdict = statistics.winner(methods)
    return Section(model, data, rows, verdict, headline(verdict, rows), reasons(verdict, rows), looked)


def _row(method: str, runs: list[Record]) -> Row:
    return Row(
        method=method,
        runs=runs,
        score=statistics.score_of(runs),
        trainable=statistics.over_seeds([run.trainable for run in runs]),
        bytes=statistics.over_seeds([run.bytes for run in runs]),
        parts=_parts(runs),
        step_ratio=_mean(runs, lambda run: run.step_ratio),
        peak_bytes=_mean(runs, lambda run: run.peak_bytes),
        forgetting=_forgetting(runs),
        intruders=_mean(runs, lambda run: (run.intruders or {}).get("count")),
        intruders_null=_mean(runs, lambda run: (run.intruders or {}).get("null")),
        calibration_error=_mean(runs, lambda run: run.calibration_error),
    )


def _mean(runs: Sequence[Record], read: Callable[[Record], float | None]) -> Interval | None:
    values = [value for value in map(read, runs) if value is not None and formatting.known(value)]
    return statistics.over_seeds(values) if values else None


def _parts(runs: Sequence[Record]) -> dict[str, Interval]:
    found: dict[str, list[Record]] = {}
    for run in runs:
        for part, metrics in run.tests.items():
            if formatting.known(metrics.get(run.metric)):
                found.setdefault(part, []).append(_part(run, part, metrics[run.metric]))
    return {part: statistics.score_of(alone) for part, alone in found.items()}


def _part(run: Record, part: str, score: float) -> Record:
    """A run as if the part were the whole test."""
    hits, answers = ({part: rows[part]} if part in rows else {} for rows in (run.hits, run.answers))
    return dataclasses.replace(run, score=score, hits=hits, answers=answers)


def _forgetting(runs: Sequence[Record]) -> dict[str, Interval]:
    found: dict[str, list[float]] = {}
    for run in runs:
        for what, (before, after) in run.forgetting.items():
            worse = after - before if what.endswith(LOSS) else before - after
            if formatting.known(worse):
                found.setdefault(what, []).append(worse)
    return {what: statistics.over_seeds(values) for what, values in found.items()}


# --- the verdict in words --------------------------------------------------------------------------


def told(test: Paired) -> bool:
    """Returns whether the paired test tells the best from the other."""
    return test.adjusted < 1 - LEVEL and test.difference > 0


def headline(verdict: Verdict, rows: Sequence[Row]) -> str:
    """One sentence; names a winner only where the tests do."""
    if verdict.winner:
        return f"{verdict.winner} scores higher than every other method, by more than chance."
    if not verdict.tests:
        return f"{verdict.best} alone: nothing to compare it with."
    if any(test.seeds < 2 for test in verdict.tests):
        return "Too few seeds to tell the methods apart."
    near = [test.second for test in verdict.tests if not told(test)]
    if len(near) == len(verdict.tests):
        return "No difference that the seeds can tell."
    if {row.method for row in rows if row.trainable.value} <= {verdict.best, *near}:
        return "No difference between the fitted methods that the seeds can tell."
    if len(near) > 4:
        return f"No single best: the seeds cannot tell {verdict.best} from {len(near)} others."
    return f"No single best: the seeds cannot tell {verdict.best} from {formatting.listed(near, 'or')}."


def reasons(verdict: Verdict, rows: Sequence[Row]) -> list[str]:
    """Returns the sentences under the headline: the engine's reason, who is behind, who is cheapest of the best."""
    said = [f"{verdict.reason}."] if verdict.tests else []
    if verdict.winner or any(test.seeds < 2 for test in verdict.tests):
        return said
    said += sensitivity(verdict)
    behind = [test.second for test in verdict.tests if told(test)]
    if behind:
        verb = "is" if len(behind) == 1 else "are"
        said.append(f"{formatting.listed(behind)} {verb} behind {verdict.best} by more than chance.")
    near = {verdict.best, *(test.second for test in verdict.tests if not told(test))}
    equals = [row for row in rows if row.method in near and row.trainable.value]
    if len(equals) > 1:
        least = min(equals, key=lambda row: row.trainable.value)
        said.append(
            f"Of the {len(equals)} that the tests leave level, {least.method} trains the fewest parameters "
            f"({formatting.count(least.trainable.value)})."
        )
    return said


def sensitivity(verdict: Verdict) -> list[str]:
    """Returns what differences from the best, where none was told, the seeds and rows would have shown."""
    seen = [test.detectable for test in verdict.tests if not told(test) and formatting.known(test.detectable)]
    if not seen:
        return []
    low, high = (formatting.score(value) for value in (min(seen), max(seen)))
    least = low if low == high else f"{low} to {high}"
    return [f"So many seeds and rows would have told a difference of {least} in four of five such studies."]
