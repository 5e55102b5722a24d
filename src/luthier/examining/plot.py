"""The picture of an examination: every place by its block, beside the null."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = {"places": "tab:blue", "null": "grey"}


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draws what examined.json holds to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if found.get("edges"):
        _circuit(figure, axes, found)
        figure.savefig(path)
        return
    (_by_block if any(each is not None for each in found["layers"].values()) else _by_name)(axes, found)
    axes.set(ylabel=found["column"], title=f"{found['examination']}: {Path(found['target']).name}")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def by_block(found: Mapping[str, Any], which: str) -> dict[int, list[float]]:
    """Returns `{block: the column's numbers}` of `places` or `null`; places outside the blocks are -1."""
    grouped: dict[int, list[float]] = {}
    for name, numbers in found[which].items():
        layer = found["layers"][name]
        grouped.setdefault(-1 if layer is None else layer, []).append(numbers[found["column"]])
    return dict(sorted(grouped.items()))


def _by_block(axes: Any, found: Mapping[str, Any]) -> None:
    """Points for places, a line through the means of blocks."""
    from matplotlib.ticker import MaxNLocator

    for which, label in (("null", f"null: {found['baseline']}"), ("places", "found")):
        blocks = by_block(found, which)
        means = [sum(values) / len(values) for values in blocks.values()]
        style = "--" if which == "null" else "-"
        axes.plot(list(blocks), means, style, color=COLOURS[which], label=label)
        points = [(block, value) for block, values in blocks.items() for value in values]
        axes.scatter(*zip(*points, strict=True), s=10, alpha=0.5, color=COLOURS[which])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block" + (" (-1: outside the blocks)" if -1 in by_block(found, "places") else ""))


def _by_name(axes: Any, found: Mapping[str, Any]) -> None:
    """Bars, with intervals where there are any."""
    names = list(found["places"])
    for shift, which, label in ((-0.2, "places", "found"), (0.2, "null", f"null: {found['baseline']}")):
        rows = [found[which][name] for name in names]
        values = [row[found["column"]] for row in rows]
        spans = [(row.get("low", v), row.get("high", v)) for row, v in zip(rows, values, strict=True)]
        reach = [
            [max(v - low, 0) for v, (low, _) in zip(values, spans, strict=True)],
            [max(high - v, 0) for v, (_, high) in zip(values, spans, strict=True)],
        ]
        places = [index + shift for index in range(len(names))]
        axes.bar(places, values, 0.36, yerr=reach, capsize=3, color=COLOURS[which], alpha=0.8, label=label)
    axes.set_xticks(range(len(names)), names)


def _circuit(figure: Any, axes: Any, found: Mapping[str, Any]) -> None:
    """Places `block.head` as points, coloured by their number, ringed where they were kept; edges as lines between
    them, as wide as their effect is large."""
    points = {name: (found["layers"][name], int(name.rpartition(".")[2])) for name in found["places"]}
    values = [found["places"][name][found["column"]] for name in points]
    most = max(map(abs, values)) or 1.0
    largest = max(abs(each) for each in found["edges"].values()) or 1.0
    for name, effect in found["edges"].items():
        ends = [points[each] for each in name.split(" > ") if each in points]
        if len(ends) == 2:
            x, y = zip(*ends, strict=True)
            axes.plot(x, y, color="tab:red" if effect > 0 else "tab:blue", lw=0.3 + 4 * abs(effect) / largest, zorder=1)
    kept = [found["places"][name].get("mask", 0.0) > 0.5 for name in points]
    x, y = zip(*points.values(), strict=True)
    ring = ["black" if each else "none" for each in kept]
    shown = axes.scatter(x, y, c=values, cmap="RdBu_r", vmin=-most, vmax=most, s=90, edgecolors=ring, zorder=2)
    figure.colorbar(shown, ax=axes, label=found["column"])
    title = f"{found['examination']}: {Path(found['target']).name} (ringed: kept; lines: paths between heads)"
    axes.set(xlabel="block", ylabel="head", title=title)
    axes.spines[["top", "right"]].set_visible(False)
