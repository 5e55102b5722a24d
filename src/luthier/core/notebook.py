"""Results as notebooks show them: tables and curves as HTML that needs no script and no library."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLOURS = ("#4878cf", "#d1711f", "#4c9f50", "#b0413e", "#8262b5")
"""Lines in turn; they can be read on white and on black."""
WIDTH, HEIGHT, EDGE = 420, 160, 6
Points = Sequence[tuple[float, float]]


def figures(values: Mapping[str, Any]) -> str:
    """Returns a table of two columns: what, and how much."""
    rows = "".join(f"<tr><th>{_cell(name)}</th><td>{_cell(value)}</td></tr>" for name, value in values.items())
    return f"<table>{rows}</table>"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns a table with a column for each key that some row has."""
    found = list(rows)
    columns = list(dict.fromkeys(key for row in found for key in row))
    head = "".join(f"<th>{_cell(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(key))}</td>' for key in columns)}</tr>" for row in found)
    return f"<table><tr>{head}</tr>{body}</table>"


def curves(series: Mapping[str, Points]) -> str:
    """Lines of points (x, y) on a common scale, as a picture; what is not finite is left out."""
    drawn = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    every = [point for points in drawn.values() for point in points]
    if not every:
        return ""
    low, high = [min(each) for each in zip(*every, strict=True)], [max(each) for each in zip(*every, strict=True)]
    coloured = list(zip(drawn.items(), itertools.cycle(COLOURS), strict=False))
    lines = "".join(_line(points, low, high, colour) for (_, points), colour in coloured)
    names = ", ".join(f'<span style="color:{colour}">{_cell(name)}</span>' for (name, _), colour in coloured)
    told = f"{names}: {low[1]:.4g} to {high[1]:.4g}, steps {low[0]:g} to {high[0]:g}"
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{lines}</svg><div>{told}</div>'


def _line(points: Points, low: Sequence[float], high: Sequence[float], colour: str) -> str:
    places = ((_place(x, low[0], high[0], WIDTH), _place(y, high[1], low[1], HEIGHT)) for x, y in points)
    path = " ".join(f"{x},{y}" for x, y in places)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _place(value: float, first: float, last: float, size: int) -> float:
    share = (value - first) / (last - first) if first != last else 0.5
    return round(EDGE + share * (size - 2 * EDGE), 1)


def _cell(value: Any) -> str:
    return html.escape(shown(value))


def shown(value: Any) -> str:
    """Returns a value for people: four digits, thousands' commas, a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
