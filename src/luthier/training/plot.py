"""`loss.png`: training and evaluation loss over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILE = "loss.png"


def plot(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draws the metrics `lines` to `path`: raw losses as points, their running mean and the evaluations as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps, losses = column(lines, "loss")
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(steps, losses, ".", color="tab:blue", alpha=0.25, markersize=4, label="training, each step")
    axes.plot(steps, smooth(losses), color="tab:blue", linewidth=1.8, label="training, running mean")
    eval_steps, eval_losses = column(lines, "eval_loss")
    if eval_steps:
        axes.plot(eval_steps, eval_losses, "o-", color="tab:orange", markersize=4, label="evaluation")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def column(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Returns (steps, values) of the lines that have `name`."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]


def smooth(values: list[float], span: int = 50) -> list[float]:
    """Exponential running mean over about a `span`-th of the values, without the pull of its start."""
    decay = 1 - 1 / max(1, len(values) / span)
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        out.append(mean / weight)
    return out
