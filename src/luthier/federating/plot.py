"""The picture of a federated run: loss and score of the server's model over the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOSSES = {"train_loss": "clients, in training", "eval_loss": "server, held-out rows"}
SCORES = ("accuracy", "mcc", "pearson")


def plot(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws the lines of metrics.jsonl to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scores = [name for name in SCORES if any(name in line for line in lines)]
    figure = Figure(figsize=(9 if scores else 6, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for name, label in LOSSES.items():
        draw(axes[0], lines, name, label)
    axes[0].set(ylabel="loss")
    for name in scores:
        draw(axes[1], lines, name, name)
    figure.suptitle(title, fontsize=10)
    for each in axes:
        each.set(xlabel="round")
        each.grid(alpha=0.3)
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def draw(axes: Any, lines: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    """One figure over the rounds that have it."""
    known = [(line["round"], line[name]) for line in lines if name in line]
    axes.plot([each for each, _ in known], [value for _, value in known], "o-", markersize=4, label=label)
