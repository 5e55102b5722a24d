"""The drawings of the page, as SVG that takes its colours from the page's style."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from luthier.comparing.measures.significance import Interval
from luthier.comparing.report import axis, formatting, labels
from luthier.comparing.report.axis import Axis
from luthier.comparing.report.labels import Box, Label

WIDE, HIGH = 384, 326
FRAME = Box(44, 26, 374, 282)
"""Where points stand; titles and ticks are around it."""
STRIP = Box(4, 2, 146, 24)


@dataclass(frozen=True)
class Span:
    """A figure and the ends of its interval, which are the figure itself where there is none."""

    value: float
    low: float
    high: float


def span(found: Interval, floor: float = -math.inf) -> Span:
    """An interval that can be drawn, of a figure that is never below `floor`: what reaches further down ends there.

    Student's t knows no bounds. Of two seeds whose steps take 1.0 and 1.3 times the base's it says -0.8 to 3.1, and
    no step takes less than no time; the bar goes from 0 to 3.1.
    """
    low, high = (end if formatting.known(end) else found.value for end in (found.low, found.high))
    return Span(found.value, max(low, floor), high)


@dataclass(frozen=True)
class Point:
    name: str
    x: Span
    y: Span


@dataclass(frozen=True)
class Price:
    """The quantity of a horizontal axis."""

    title: str
    show: Callable[[float], str]
    """Writes its ticks."""
    log: bool = False
    """Equal ratios are equal lengths; figures are above nought."""
    least: float = 0.0
    """The shortest axis: small differences are not blown up."""
    floor: float = -math.inf
    """No figure is below it, and so no bar (see `span`)."""


def frontier(points: Iterable[Point]) -> list[Point]:
    """Returns the points that no other beats on both axes (less of x, more of y), from cheap to expensive."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.x.value, -each.y.value)):
        if not best or point.y.value > best[-1].y.value:
            best.append(point)
    return best


def height(spans: Sequence[Span], base: Span | None) -> Axis:
    """Returns the vertical axis that the plots of a section share."""
    return axis.over(_ends(spans, base), FRAME.bottom, FRAME.top, least=0.02)


@dataclass(frozen=True)
class Layout:
    """A Pareto plot with every place found, in the units of the drawing."""

    points: list[Point]
    best: list[Point]
    """The frontier."""
    places: list[tuple[float, float]]
    names: list[Label]
    x_axis: Axis
    y_axis: Axis
    price: Price
    metric: str
    base: Span | None

    def at(self, point: Point) -> tuple[float, float]:
        """Returns where a point stands."""
        return self.x_axis.at(point.x.value), self.y_axis.at(point.y.value)

    @property
    def corners(self) -> list[tuple[float, float]]:
        """The step line of the frontier, to the edge of the frame."""
        found = [self.at(self.best[0])]
        for point in self.best[1:]:
            x, y = self.at(point)
            found += [(x, found[-1][1]), (x, y)]
        return [*found, (FRAME.right, found[-1][1])]

    @property
    def bars(self) -> list[tuple[float, float, float, float]]:
        """(x, y, x, y) of the intervals."""
        found = []
        for point in self.points:
            x, y = self.at(point)
            found.append((x, self.y_axis.at(point.y.low), x, self.y_axis.at(point.y.high)))
            found.append((self.x_axis.at(point.x.low), y, self.x_axis.at(point.x.high), y))
        return found

    @property
    def base_said(self) -> tuple[float, str]:
        """The height of the words for the base, and the words; where it is off the axis they say so."""
        assert self.base
        y = min(FRAME.bottom, max(FRAME.top, self.y_axis.at(self.base.value)))
        side = "below" if self.base.value < self.y_axis.low else "above"
        off = "" if self.base_inside else f", {side} the axis"
        return (y - 5 if y > FRAME.top + 16 else y + 13), f"base {formatting.score(self.base.value)}{off}"

    @property
    def base_inside(self) -> bool:
        return self.base is not None and self.y_axis.low <= self.base.value <= self.y_axis.high


def layout(points: Sequence[Point], base: Span | None, price: Price, y_axis: Axis, metric: str) -> Layout:
    """Places for at least one point, its bars and its name."""
    ends = [end for point in points for end in (point.x.low, point.x.value, point.x.high)]
    x_axis = axis.over(ends, FRAME.left, FRAME.right, price.log, price.least)
    places = [(x_axis.at(point.x.value), y_axis.at(point.y.value)) for point in points]
    bare = Layout(list(points), frontier(points), places, [], x_axis, y_axis, price, metric, base)
    named = [(x, y, point.name) for point, (x, y) in zip(points, places, strict=True)]
    return dataclasses.replace(bare, names=labels.place(named, list(_obstacles(bare)), FRAME))


def pareto(plot: Layout) -> Markup:
    """Score against a price: intervals as bars, the frontier as a step line, names beside their points."""
    step_line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in plot.corners)
    line = Markup('<line class="bar" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    title = Markup('<text class="title" x="0" y="12">{}</text>').format(plot.metric)
    below = Markup('<text class="title" x="{}" y="{}" text-anchor="end">{}</text>')
    parts = [
        _grid(plot),
        _base_line(plot),
        Markup('<path class="frontier" d="{}"/>').format(step_line),
        *(line.format(*bar) for bar in plot.bars),
        *(_mark(plot, index) for index in range(len(plot.points))),
        title,
        below.format(FRAME.right, HIGH - 8, plot.price.title),
    ]
    about = f"{plot.metric} against {plot.price.title}: {formatting.listed([point.name for point in plot.points])}"
    return svg(WIDE, HIGH, about, parts)


def svg(wide: float, high: float, about: str, parts: Iterable[Markup]) -> Markup:
    """A drawing that scales to the width it is given; `about` is what a screen reader says."""
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(wide, high, about)
    return head + Markup("").join(parts) + Markup("</svg>")


def strip(span: Span, seeds: Sequence[float], x_axis: Axis, base: Span | None) -> Markup:
    """Returns a row of the table as a drawing: the interval, the mean, and each seed as a ring."""
    middle = (STRIP.top + STRIP.bottom) / 2
    if not x_axis.low <= span.value <= x_axis.high:
        arrow = Markup('<text x="{}" y="17" text-anchor="{}">{}</text>')
        off = (STRIP.left, "start", "← lower") if span.value < x_axis.low else (STRIP.right, "end", "higher →")
        return svg(150, 26, "off the drawing", [arrow.format(*off)])
    parts = []
    if base and x_axis.low <= base.value <= x_axis.high:
        line = Markup('<line class="base" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>')
        parts.append(line.format(x_axis.at(base.value), STRIP.top, STRIP.bottom))
    bar = Markup('<line class="bar wide" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>')
    parts.append(bar.format(x_axis.at(span.low), x_axis.at(span.high), y=middle))
    ring = Markup('<circle class="seed" cx="{:.1f}" cy="{}" r="2.4"/>')
    parts += [ring.format(x_axis.at(seed), middle) for seed in seeds]
    mean = Markup('<line class="mean" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>')
    parts.append(mean.format(x_axis.at(span.value), middle - 7, middle + 7))
    return svg(150, 26, f"{formatting.score(span.low)} to {formatting.score(span.high)}", parts)


def strip_axis(spans: Sequence[Span], base: Span | None) -> Axis:
    """Returns the axis that the strips of a table share."""
    return axis.over(_ends(spans, base), STRIP.left, STRIP.right, least=0.02)


def _ends(spans: Sequence[Span], base: Span | None) -> list[float]:
    """What an axis of scores holds: all intervals, and the base unless it would squeeze the methods."""
    ends = [end for span in spans for end in (span.low, span.high)]
    room = max(max(ends) - min(ends), 0.02)
    near = base is not None and min(ends) - room <= base.value <= max(ends) + room
    return [*ends, base.low, base.value, base.high] if base and near else ends


def _grid(plot: Layout) -> Markup:
    across = Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>')
    left = Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>')
    nick = Markup('<line class="nick" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>')
    below = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
    floor = Markup('<line class="nick" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>')
    parts = [floor.format(FRAME.left, FRAME.right, FRAME.bottom)]
    for tick in plot.y_axis.ticks():
        y = plot.y_axis.at(tick)
        parts += [across.format(FRAME.left, FRAME.right, y=y), left.format(FRAME.left - 8, y + 4, f"{tick:.3g}")]
    for tick in plot.x_axis.ticks():
        x = plot.x_axis.at(tick)
        parts.append(nick.format(FRAME.bottom, FRAME.bottom + 4, x=x))
        parts.append(below.format(x, FRAME.bottom + 17, plot.price.show(tick)))
    return Markup("").join(parts)


def _base_line(plot: Layout) -> Markup:
    """The untrained base as a line across; off the axis it is said in words."""
    if not plot.base:
        return Markup("")
    text = Markup('<text class="base-name" x="{}" y="{:.1f}" text-anchor="end">{}</text>')
    said = text.format(FRAME.right, *plot.base_said)
    line = Markup('<line class="base" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>')
    y = plot.y_axis.at(plot.base.value)
    return line.format(FRAME.left, FRAME.right, y=y) + said if plot.base_inside else said


def _mark(plot: Layout, index: int) -> Markup:
    """A filled disc on the frontier, a ring elsewhere; the pointer over it shows the figures."""
    point, (x, y), name = plot.points[index], plot.places[index], plot.names[index]
    lead = Markup('<line class="leader" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    line = lead.format(x, y, *name.leader) if name.leader else Markup("")
    low, high = formatting.score(point.y.low), formatting.score(point.y.high)
    about = f"{point.name}: {formatting.score(point.y.value)} ({low} to {high})"
    made = Markup(
        '<g class="{}"><title>{}</title>{}<circle cx="{:.1f}" cy="{:.1f}" r="4.6"/>'
        '<text class="name" x="{:.1f}" y="{:.1f}">{}</text></g>'
    )
    kind = "point best" if point in plot.best else "point"
    return made.format(kind, about, line, x, y, name.x, name.y, point.name)


def _obstacles(plot: Layout) -> Iterable[Box]:
    """What names keep off: bars, the step line, and the words of the base."""
    step_line = [(*start, *end) for start, end in zip(plot.corners, plot.corners[1:], strict=False)]
    for x, y, to_x, to_y in (*plot.bars, *step_line):
        yield Box(min(x, to_x) - 1, min(y, to_y) - 1, max(x, to_x) + 1, max(y, to_y) + 1)
    if plot.base:
        y, said = plot.base_said
        yield Box(FRAME.right - labels.WIDTH * len(said), y - 12, FRAME.right, y + 6)
