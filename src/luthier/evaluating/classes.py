"""Figures of each class: precision, recall, F1, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def by_class(predicted: Sequence[str], truth: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns `{class: {"precision", "recall", "f1", "rows", "predicted"}}`, 0 where a class was never predicted or
    never there, as scikit-learn has it."""
    found = {}
    for name in names:
        right = sum(p == t == name for p, t in zip(predicted, truth, strict=True))
        there, said = sum(t == name for t in truth), sum(p == name for p in predicted)
        precision, recall = right / said if said else 0.0, right / there if there else 0.0
        both = precision + recall
        f1 = 2 * precision * recall / both if both else 0.0
        found[name] = {"precision": precision, "recall": recall, "f1": f1, "rows": there, "predicted": said}
    return found


def macro(classes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Returns the means of precision, recall and F1 over the classes that are there or were predicted."""
    seen = [each for each in classes.values() if each["rows"] or each["predicted"]]
    return {f"macro_{key}": sum(each[key] for each in seen) / len(seen) for key in ("precision", "recall", "f1")}


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
