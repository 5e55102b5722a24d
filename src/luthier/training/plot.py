"""`loss.png`: training and evaluation loss over the steps, and what else the objective tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "loss.png"


def plot(lines: list[dict[str, Any]], path: Path, title: str, curves: Sequence[Sequence[str]] = ()) -> None:
    """Draws the metrics `lines` to `path`: raw losses as points, their running mean and the evaluations as lines.

    Each of `curves`, figures of one unit, gets axes of its own below.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps, losses = column(lines, "loss")
    figure = Figure(figsize=(8, 4.5 + 2.2 * len(curves)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [2, *[1] * len(curves)]
    axes, *below = figure.subplots(1 + len(curves), squeeze=False, height_ratios=heights)[:, 0]
    axes.plot(steps, losses, ".", color="tab:blue", alpha=0.25, markersize=4, label="training, each step")
    axes.plot(steps, smooth(losses), color="tab:blue", linewidth=1.8, label="training, running mean")
    eval_steps, eval_losses = column(lines, "eval_loss")
    if eval_steps:
        axes.plot(eval_steps, eval_losses, "o-", color="tab:orange", markersize=4, label="evaluation")
    axes.set(ylabel="loss", title=title)
    for each, names in zip(below, curves, strict=True):
        _draw(each, lines, names)
    for each in (axes, *below):
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False)
    (axes, *below)[-1].set_xlabel("step")
    figure.savefig(path)


def _draw(axes: Any, lines: list[dict[str, Any]], names: Sequence[str]) -> None:
    """Figures over the steps: their running mean, and the evaluations as points of the same colour."""
    for index, name in enumerate(names):
        colour = f"C{index}"
        steps, values = column(lines, name)
        axes.plot(steps, smooth(values), color=colour, linewidth=1.5, label=name.replace("_", " "))
        axes.plot(*column(lines, f"eval_{name}"), "o--", color=colour, markersize=4, linewidth=0.8)


def column(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Returns (steps, values) of the lines that have `name`, less those where it is not a number."""
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None and math.isfinite(line[name])]
    return [step for step, _ in found], [value for _, value in found]


def smooth(values: list[float], span: int = 50) -> list[float]:
    """Exponential running mean over about a `span`-th of the values, without the pull of its start."""
    decay = 1 - 1 / max(1, len(values) / span)
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        out.append(mean / weight)
    return out
