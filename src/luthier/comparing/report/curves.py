"""Loss curves as small drawings, one per method, on the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from luthier.comparing.record import Record
from luthier.comparing.report import axis, formatting
from luthier.comparing.report.axis import Axis
from luthier.comparing.report.charts import svg
from luthier.comparing.report.labels import Box
from luthier.training.plot import smooth

WIDE, HIGH = 272, 168
FRAME = Box(34, 10, 236, 142)
MOST = 90
"""Points of a line; more cannot be seen."""

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Lines:
    """The curves of a method, one of each kind a seed."""

    method: str
    training: list[Curve]
    evaluation: list[Curve]


def lines(method: str, runs: Sequence[Record]) -> Lines:
    """Returns the curves of the runs; training losses as running means."""
    training = [_clean(run.losses) for run in runs]
    smoothed = [list(zip([s for s, _ in each], smooth([v for _, v in each]), strict=True)) for each in training]
    return Lines(method, [each for each in smoothed if each], [c for run in runs if (c := _clean(run.eval_losses))])


def panels(all_lines: Sequence[Lines]) -> list[tuple[str, Markup]]:
    """Returns (method, drawing) of every method that has a curve; other methods' evaluations are behind it in grey."""
    drawn = [each for each in all_lines if each.training or each.evaluation]
    if not drawn:
        return []
    curves = [curve for each in drawn for curve in (*each.training, *each.evaluation)]
    x_axis = Axis(0, max(step for curve in curves for step, _ in curve), FRAME.left, FRAME.right)
    y_axis = axis.over(_range(drawn), FRAME.bottom, FRAME.top)
    return [(each.method, _panel(each, [o for o in drawn if o is not each], x_axis, y_axis)) for each in drawn]


def _range(drawn: Sequence[Lines]) -> list[float]:
    """The losses that the axis holds: every evaluation, and all but the highest tenth of training (its start)."""
    training = sorted(loss for each in drawn for curve in each.training for _, loss in curve)
    evaluation = [loss for each in drawn for curve in each.evaluation for _, loss in curve]
    return [*training[: max(1, round(0.9 * len(training)))], *evaluation]


def _panel(each: Lines, others: Sequence[Lines], x_axis: Axis, y_axis: Axis) -> Markup:
    parts = [_grid(x_axis, y_axis)]
    parts += [_line("ghost", curve, x_axis, y_axis) for other in others for curve in other.evaluation]
    parts.append(_clipped([_line("training", curve, x_axis, y_axis) for curve in each.training]))
    for curve in each.evaluation:
        parts.append(_line("evaluation", curve, x_axis, y_axis))
        dot = Markup('<circle class="evaluation" cx="{:.1f}" cy="{:.1f}" r="1.9"/>')
        parts += [dot.format(x_axis.at(step), y_axis.at(loss)) for step, loss in curve if len(curve) <= 30]
    ends = [curve[-1] for curve in each.evaluation]
    if ends:
        last = sum(loss for _, loss in ends) / len(ends)
        text = Markup('<text class="end" x="{:.1f}" y="{:.1f}">{}</text>')
        parts.append(text.format(x_axis.at(max(step for step, _ in ends)) + 6, y_axis.at(last) + 4, f"{last:.2f}"))
        return svg(WIDE, HIGH, f"losses of {each.method}; the evaluation ends at {formatting.score(last)}", parts)
    return svg(WIDE, HIGH, f"losses of {each.method}", parts)


def _clipped(parts: Sequence[Markup]) -> Markup:
    """The parts, cut at the frame: the first losses are above it."""
    size = FRAME.left, FRAME.top, FRAME.right - FRAME.left, FRAME.bottom - FRAME.top
    head = Markup('<svg class="clip" x="{0}" y="{1}" width="{2}" height="{3}" viewBox="{0} {1} {2} {3}">').format(*size)
    return head + Markup("").join(parts) + Markup("</svg>")


def _line(kind: str, curve: Curve, x_axis: Axis, y_axis: Axis) -> Markup:
    every = max(1, -(-len(curve) // MOST))
    kept = [*curve[:-1:every], curve[-1]]
    points = " ".join(f"{x_axis.at(step):.1f},{y_axis.at(loss):.1f}" for step, loss in kept)
    return Markup('<polyline class="{}" points="{}"/>').format(kind, points)


def _grid(x_axis: Axis, y_axis: Axis) -> Markup:
    across = Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>')
    left = Markup('<text x="{}" y="{:.1f}" text-anchor="end">{:.3g}</text>')
    below = Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>')
    parts = []
    for tick in y_axis.ticks(3):
        parts.append(across.format(FRAME.left, FRAME.right, y=y_axis.at(tick)))
        parts.append(left.format(FRAME.left - 6, y_axis.at(tick) + 4, tick))
    parts.append(below.format(FRAME.left, HIGH - 8, "start", "0"))
    parts.append(below.format(FRAME.right, HIGH - 8, "end", f"{x_axis.high:,.0f} steps"))
    return Markup("").join(parts)


def _clean(curve: Sequence[tuple[int, float]]) -> Curve:
    return [(float(step), loss) for step, loss in curve if formatting.known(loss)]
