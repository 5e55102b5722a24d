"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def confusion(predicted: Sequence[str], truth: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Returns `{"labels", "counts"}`: counts[i][j] rows of class i were taken for class j."""
    place = {name: index for index, name in enumerate(names)}
    counts = [[0] * len(names) for _ in names]
    for p, t in zip(predicted, truth, strict=True):
        counts[place[t]][place[p]] += 1
    return {"labels": list(names), "counts": counts}


def draw(found: dict[str, Any], path: Any, title: str) -> None:
    """Draws a confusion to `path` (.png, .svg or .pdf): rows are the right class, columns the predicted one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, counts = found["labels"], found["counts"]
    size = min(16.0, 3.0 + 0.5 * len(names))
    figure = Figure(figsize=(size + 1, size), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = [[n / max(1, sum(row)) for n in row] for row in counts]
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, label="share of the class")
    axes.set(xlabel="predicted", ylabel="right", title=title)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for i, row in enumerate(counts if len(names) <= SHOWN else []):
        for j, count in enumerate(row):
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i][j] > 0.5 else "black")
    figure.savefig(path)


SHOWN = 20
"""The most classes whose counts are written into the picture."""
