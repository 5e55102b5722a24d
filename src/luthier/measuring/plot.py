"""The picture of a measurement: what was found at every layer, and the ranks below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INK = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draws `found` (a report as JSON holds it) to `path`: dimensions where there are any, and ranks by layer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    geometric = "boundaries" in found
    figure = Figure(figsize=(9, 6.5 if geometric else 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if geometric else 1, 1, squeeze=False, height_ratios=[3, 2] if geometric else [1])[:, 0]
    if geometric:
        _dimensions(axes[0], found["boundaries"])
        _intervals(axes[-1], found["blocks"])
    _ranks(axes[-1], found["ranks"])
    data = "/".join(Path(found["data"]).parts[-2:])
    axes[0].set_title(f"{found['model']} on {data}: {found['samples']:,} rows, ranks by {found['by']}")
    for each in axes:
        each.grid(alpha=0.3)
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False, fontsize=8, ncols=4)
    figure.savefig(path)


def stacks(paths: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """Returns `{stack: {index: value}}` of block paths."""
    found: dict[str, dict[int, Any]] = {}
    for path, value in paths.items():
        stack, _, index = path.rpartition(".")
        found.setdefault(stack, {})[int(index)] = value
    return found


def estimators(boundaries: Mapping[Any, Any]) -> list[str]:
    """Returns the names of the estimators beside TwoNN."""
    return list(dict.fromkeys(name for each in boundaries.values() for name in each.get("crosscheck", {})))


def _dimensions(axes: Any, boundaries: Mapping[str, Any]) -> None:
    for ink, (stack, found) in zip(INK, stacks(boundaries).items(), strict=False):
        layers = list(found)
        value, low, high = ([each[key] for each in found.values()] for key in ("value", "low", "high"))
        axes.fill_between(layers, low, high, color=ink, alpha=0.2, linewidth=0)
        axes.plot(layers, value, "o-", color=ink, markersize=4, label=f"TwoNN, 95% interval ({stack})")
        for style, name in zip(("--", ":", "-."), estimators(found), strict=False):
            other = [each["crosscheck"].get(name, math.nan) for each in found.values()]
            axes.plot(layers, other, style, color="grey", alpha=0.8, linewidth=1, label=name)
    axes.set(xlabel="boundary (the state that enters block i)", ylabel="intrinsic dimension", ylim=(0, None))


def _intervals(axes: Any, blocks: Mapping[str, Any]) -> None:
    for found in stacks(blocks).values():
        layers = list(found)
        low, high, noise = ([each[key] for each in found.values()] for key in ("low", "high", "noise"))
        axes.vlines(layers, low, high, color="tab:blue", alpha=0.35, linewidth=5, label="ranks of resamples, 95%")
        axes.plot(layers, noise, "_", color="tab:red", markersize=9, label="ranks of noise alone, 97.5%")


def _ranks(axes: Any, ranks: Mapping[str, int]) -> None:
    """The ranks of each type of site over the blocks; types with equal ranks are one line."""
    lines: dict[tuple, list[str]] = {}
    for kind, points in by_type(ranks).items():
        lines.setdefault(tuple(points), []).append(kind.rpartition(".")[2])
    for ink, (points, kinds) in zip(INK, lines.items(), strict=False):
        layers, values = zip(*points, strict=True)
        name = ", ".join(kinds) if len(kinds) <= 3 else f"{kinds[0]} and {len(kinds) - 1} more"
        axes.plot(layers, values, "o-", color=ink if len(lines) > 1 else "black", markersize=4, label=f"rank: {name}")
    axes.set(xlabel="block", ylabel="rank", ylim=(0, None))


def by_type(ranks: Mapping[str, int]) -> dict[str, list[tuple[int, int]]]:
    """Returns `{type of site: [(block, rank), …]}`; a site outside the blocks stands at -1."""
    found: dict[str, list[tuple[int, int]]] = {}
    for path, rank in ranks.items():
        parts = path.split(".")
        index = next((int(part) for part in parts if part.isdigit()), -1)
        found.setdefault(".".join(part for part in parts if not part.isdigit()), []).append((index, rank))
    return found
