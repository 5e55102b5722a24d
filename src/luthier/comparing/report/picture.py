"""The Pareto plots as a PNG, for where a page cannot go: the page's own layout, drawn by matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.comparing.report import formatting
from luthier.comparing.report.charts import FRAME, HIGH, WIDE, Layout

INK, SOFT, FAINT, ACCENT = "#14191d", "#59646e", "#e9edef", "#0b62a8"
GAP, HEAD = 24, 34
"""Between plots; and above a row of them, for its name."""
UNIT = 1 / 72
"""Inches of a unit, so that a size in points is one in units."""


def draw(found: Sequence[tuple[str, Sequence[Layout | None]]], path: Path) -> None:
    """A row of plots for each (name, plots); None is a price that was not measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide, high = 3 * WIDE + 4 * GAP, len(found) * (HIGH + HEAD) + GAP
    figure = Figure(figsize=(wide * UNIT, high * UNIT), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, wide), ylim=(high, 0))
    axes.axis("off")
    for row, (name, plots) in enumerate(found):
        top = row * (HIGH + HEAD) + HEAD
        _text(axes, GAP, top - 10, name, color=INK, fontsize=13, fontweight="bold")
        for column, plot in enumerate(plots):
            _plot(axes, plot, GAP + column * (WIDE + GAP), top)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _plot(axes: Any, plot: Layout | None, left: float, top: float) -> None:
    if plot is None:
        _text(axes, left + WIDE / 2, top + HIGH / 2, formatting.NOTHING, color=SOFT, fontsize=11, ha="center")
        return
    _grid(axes, plot, left, top)
    xs, ys = zip(*plot.corners, strict=True)
    axes.plot([left + x for x in xs], [top + y for y in ys], color=ACCENT, linewidth=1.5)
    for x, y, to_x, to_y in plot.bars:
        axes.plot((left + x, left + to_x), (top + y, top + to_y), color=SOFT, linewidth=0.9, alpha=0.5)
    for point, (x, y), name in zip(plot.points, plot.places, plot.names, strict=True):
        best = point in plot.best
        if name.leader:
            axes.plot((left + x, left + name.leader[0]), (top + y, top + name.leader[1]), color=SOFT, linewidth=0.7)
        edge = ACCENT if best else SOFT
        axes.plot(left + x, top + y, "o", markersize=8, color=ACCENT if best else "white", markeredgecolor=edge)
        style = {"family": "monospace", "fontweight": "bold" if best else "normal"}
        _text(axes, left + name.x, top + name.y, point.name, color=INK, fontsize=11, **style)


def _grid(axes: Any, plot: Layout, left: float, top: float) -> None:
    ends, floor = (left + FRAME.left, left + FRAME.right), top + FRAME.bottom
    for tick in plot.y_axis.ticks():
        y = top + plot.y_axis.at(tick)
        axes.plot(ends, (y, y), color=FAINT, linewidth=1)
        _text(axes, ends[0] - 8, y + 4, f"{tick:.3g}", color=SOFT, fontsize=11, ha="right")
    axes.plot(ends, (floor, floor), color=SOFT, linewidth=1)
    for tick in plot.x_axis.ticks():
        x = left + plot.x_axis.at(tick)
        axes.plot((x, x), (floor, floor + 4), color=SOFT, linewidth=1)
        _text(axes, x, floor + 17, plot.price.show(tick), color=SOFT, fontsize=11, ha="center")
    _text(axes, left, top + 12, plot.metric, color=INK, fontsize=11)
    _text(axes, ends[1], top + HIGH - 8, plot.price.title, color=INK, fontsize=11, ha="right")
    if plot.base:
        y, said = plot.base_said
        _text(axes, ends[1], top + y, said, color=SOFT, fontsize=11, ha="right")
        if plot.base_inside:
            at = top + plot.y_axis.at(plot.base.value)
            axes.plot(ends, (at, at), color=SOFT, linewidth=1, linestyle=(0, (4, 3)))


def _text(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Text on its base line, as it is: a dollar starts no formula."""
    axes.text(x, y, text, va="baseline", parse_math=False, **style)
