"""The picture of a search: the range of every node, by kind, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draws `found` (a search as JSON holds it) to `path`: a bar for each node, each half below what it halves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    nodes = _in_order(found["nodes"])
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(nodes)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (level, node) in enumerate(nodes):
        modules, first, last = node["name"].rsplit("-", 2)
        best = node["name"] == found["best"]
        axes.barh(row, int(last) - int(first) + 0.9, left=int(first) - 0.45, color="tab:red" if best else "tab:blue")
        axes.text(int(last) + 0.6, row, f"{node['eval_loss']:.4f}", va="center", fontsize=8)
        axes.text(-0.7, row, "  " * level + modules, va="center", ha="right", fontsize=8)
    axes.set(xlabel="layer", xlim=(-0.6, found["depth"] + 1.5), ylim=(len(nodes) - 0.4, -0.6), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("evaluation loss by range and modules (red: the best)", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path)


def _in_order(
    nodes: list[dict[str, Any]], parent: str | None = None, level: int = 0
) -> list[tuple[int, dict[str, Any]]]:
    """Every node behind the one that it halves, with its level in the tree."""
    found = []
    for node in nodes:
        if node["parent"] == parent:
            found += [(level, node), *_in_order(nodes, node["name"], level + 1)]
    return found
