"""The picture of a sweep: accuracy on training tasks and on new ones by the number of tasks, and within a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.training.in_context.spec import InContext


def plot(spec: InContext, cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws a row for each width: the last quarter by the number of tasks, and new tasks by place, to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 + 2.6 * len(spec.widths)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for (left, right), width in zip(figure.subplots(len(spec.widths), 2, squeeze=False), spec.widths, strict=True):
        row = sorted((cell for cell in cells if cell["width"] == width), key=lambda cell: cell["tasks"])
        _by_tasks(left, row, f"width {width}: last quarter of a sequence", 1 / spec.classes)
        _by_place(right, row, f"width {width}: new tasks within a sequence", 1 / spec.classes)
    figure.savefig(path)


def _by_tasks(axes: Any, row: Sequence[dict[str, Any]], title: str, chance: float) -> None:
    counts = [cell["tasks"] for cell in row]
    for name, marker in (("seen", "o"), ("unseen", "s")):
        last, low, high = (np.array([cell[name][key] for cell in row]) for key in ("last", "low", "high"))
        axes.plot(counts, last, marker=marker, label=f"{name} tasks")
        axes.fill_between(counts, low, high, alpha=0.2)
    for cell in row:
        axes.annotate(cell["phase"], (cell["tasks"], 0.01), fontsize=6, rotation=90, ha="center", va="bottom")
    axes.set_xscale("log", base=2)
    _labelled(axes, title, "training tasks", chance)


def _by_place(axes: Any, row: Sequence[dict[str, Any]], title: str, chance: float) -> None:
    for cell in row:
        values = cell["unseen"]["by place"]
        axes.plot(range(1, len(values) + 1), values, label=f"{cell['tasks']:,} tasks", linewidth=1)
    _labelled(axes, title, "place in the sequence", chance)


def _labelled(axes: Any, title: str, below: str, chance: float) -> None:
    axes.axhline(chance, color="grey", linestyle=":", linewidth=1, label="chance")
    axes.set(ylim=(0, 1), xlabel=below, ylabel="accuracy")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7)
