"""The picture of a combination: how far each input and the result move every block, and where inputs agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draws what combined.json holds to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    several = len(found["inputs"]) > 1
    figure = Figure(figsize=(9, 6 if several else 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if several else 1, 1, squeeze=False, sharex=True)[:, 0]
    blocks = {int(layer): row for layer, row in found["blocks"].items()}
    for index, label in enumerate(names(found["inputs"])):
        axes[0].plot(list(blocks), [row["inputs"][index] for row in blocks.values()], "o-", markersize=4, label=label)
    axes[0].plot(list(blocks), [row["result"] for row in blocks.values()], "ks-", markersize=4, label="result")
    axes[0].set(ylabel="norm of the change", ylim=(0, None), title=f"{found['method']}: {len(found['inputs'])} inputs")
    if several:
        known = {layer: row["agreement"] for layer, row in blocks.items() if row["agreement"] is not None}
        axes[1].plot(list(known), list(known.values()), "o-", color="tab:green", markersize=4, label="same sign")
        chance = 0.5 ** (len(found["inputs"]) - 1)
        axes[1].axhline(chance, color="grey", linestyle="--", linewidth=1, label="by chance, if all move it")
        axes[1].set(ylabel="share of shared entries", ylim=(0, 1))
    axes[-1].set_xlabel("block" + (" (-1: outside the blocks)" if -1 in blocks else ""))
    for each in axes:
        each.grid(alpha=0.3)
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False, fontsize=8, ncols=4)
    figure.savefig(path)


def names(inputs: list[str]) -> list[str]:
    """Returns the ends of the inputs' paths that tell them apart."""
    parts = [Path(each).parts for each in inputs]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(each[-depth:]) for each in parts]
        if len(set(short)) == len(set(inputs)):
            return short
    return list(inputs)
