"""The picture of a plan's checkpoints: task score against what must not be lost, the front drawn through."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.evaluating.front import Front, Point


def plot(front: Front, path: Path, title: str) -> None:
    """Draws the front to `path` (.png or .svg): a colour for each stage, dominated checkpoints hollow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from luthier.evaluating.front import LOWER

    figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    best = sorted(front.best, key=lambda point: (point.general, point.task))
    axes.plot([p.general for p in best], [p.task for p in best], color="grey", linewidth=1, zorder=1, label="front")
    for index, stage in enumerate(dict.fromkeys(point.stage for point in front.points)):
        _stage(axes, [point for point in front.points if point.stage == stage], f"C{index}")
    for metric, flip in ((front.general_metric, axes.invert_xaxis), (front.task_metric, axes.invert_yaxis)):
        if metric in LOWER:  # so that better is always to the right and up
            flip()
    axes.set(xlabel=f"kept ability: {front.general_metric}", ylabel=f"task: {front.task_metric}", title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _stage(axes: Any, points: list[Point], colour: str) -> None:
    axes.plot([p.general for p in points], [p.task for p in points], ":", color=colour, linewidth=0.8, zorder=1)
    for point in points:
        filled = point.dominated_by is None
        axes.plot(point.general, point.task, "o", color=colour, markerfacecolor=colour if filled else "none", zorder=3)
        axes.annotate(
            str(point.step), (point.general, point.task), xytext=(4, 4), textcoords="offset points", fontsize=7
        )
    axes.plot([], [], "o", color=colour, label=points[0].stage)
