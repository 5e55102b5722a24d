"""The picture of a sequence: the matrix as a heat map."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from luthier.training.sequences.matrix import Matrix


def plot(matrix: Matrix, path: Path, title: str, score: str) -> None:
    """Draws the scores of every task, before training and after each task, to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells, count = matrix.means(), len(matrix.names)
    figure = Figure(figsize=(2.6 + 0.95 * count, 2.2 + 0.5 * count), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = axes.imshow(cells, cmap="viridis", aspect="auto", vmin=min(0.0, float(np.nanmin(cells))))
    middle = float(np.nanmin(cells) + np.nanmax(cells)) / 2
    for (row, column), value in np.ndenumerate(cells):
        colour = "white" if value < middle else "black"
        axes.text(column, row, "" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(count), matrix.names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(count + 1), ["before", *(f"after {name}" for name in matrix.names)], fontsize=8)
    axes.set(title=title)
    axes.title.set_fontsize(9)
    figure.colorbar(shown, label=score)
    figure.savefig(path)
