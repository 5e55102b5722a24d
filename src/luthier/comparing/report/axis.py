"""An axis of a drawing: from figures to places, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """Figures from `low` to `high` stand from `start` to `end`; with `log` equal ratios are equal lengths."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where `value` stands, be it beyond the ends; nought, which no ratio reaches, at the start of a log axis."""
        if self.log and value <= 0:
            return self.start
        low, high, here = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round figures within the axis, `about` so many."""
        made = _decades(self.low, self.high) if self.log else []
        return made if len(made) > 1 else _rounds(self.low, self.high, about)


def over(values: Iterable[float], start: float, end: float, log: bool = False, least: float = 0.0) -> Axis:
    """Returns an axis that holds all of `values` with some room beside them, and that is at least `least` long.

    With `log`, those above nought, of which there must be one.
    """
    found = [math.log10(value) if log else value for value in values if value > 0 or not log]
    low, high = min(found), max(found)
    room = max(0.06 * (high - low), (least - (high - low)) / 2, 0.08 if log else 1e-9)
    low, high = low - room, high + room
    return Axis(10**low, 10**high, start, end, True) if log else Axis(low, high, start, end)


def _rounds(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in STEPS if power * each >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, and 2 and 5 times them where there would be few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    tens = [10.0**power for power in range(first, last + 1)]
    for between in ((1,), (1, 3), (1, 2, 5)):
        found = [ten * each for ten in tens for each in between if low <= ten * each <= high]
        if len(found) >= 3:
            break
    return found
