"""TwoNN on clouds of known dimension: bias, spread and what its intervals cover, beside two estimators of another kind.

    python -m bench dimension [--seeds 12] [--out bench/results/dimension.json] [--plot docs/images/dimension.png]

One thread, float64, 100 coordinates. A cell is a manifold, a noise, a dimension and a number of points.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench._manifolds import MANIFOLDS, sample
from bench._registry import results_of

from luthier.core.numerics.crosscheck import crosscheck
from luthier.core.numerics.dimension import METHODS, draws, interval, ratios

DIMENSIONS = (2, 5, 10, 20)
SIZES = (256, 1000, 4000)
NOISES = (0.0, 0.05)
CHECKED = 1000  # points of a cross-check, as many as it takes at most


def one(mu: torch.Tensor, method: str) -> dict[str, float]:
    """One cloud: the estimate, its interval and the bootstrap's spread."""
    drawn = draws(mu, method=method)
    low, high = interval(drawn)
    return {"value": float(METHODS[method](mu, 0.1)), "low": low, "high": high, "sd": float(drawn.std())}


def cell(name: str, noise: float, d: int, n: int, seeds: int) -> dict:
    """All seeds of a cell, for each method, and their cross-checks at one seed."""
    clouds = [sample(name, n, d, noise=noise, seed=seed) for seed in range(seeds)]
    found: dict = {"manifold": name, "noise": noise, "d": d, "n": n}
    mus = [ratios(cloud) for cloud in clouds]
    for method in METHODS:
        runs = [one(mu, method) for mu in mus]
        found[method] = {
            "mean": statistics.mean(run["value"] for run in runs),
            "sd_over_clouds": statistics.stdev(run["value"] for run in runs),
            "sd_of_bootstrap": statistics.mean(run["sd"] ** 2 for run in runs) ** 0.5,
            "covered": statistics.mean(run["low"] <= d <= run["high"] for run in runs),
            "runs": [[round(run[key], 4) for key in ("value", "low", "high")] for run in runs],
        }
    return found | {"crosscheck": crosscheck(clouds[0])} if n == CHECKED else found


def pooled(cells: list[dict], method: str) -> dict[str, float]:
    """Over cells of one dimension: mean estimate and its range, error, spread, coverage."""
    means = [c[method]["mean"] for c in cells]
    squares = [[c[method][key] ** 2 for c in cells] for key in ("sd_of_bootstrap", "sd_over_clouds")]
    return {
        "mean": statistics.mean(means),
        "lowest": min(means),
        "highest": max(means),
        "spread": statistics.mean(squares[1]) ** 0.5,
        "bootstrap_over_spread": (sum(squares[0]) / sum(squares[1])) ** 0.5,
        "covered": statistics.mean(c[method]["covered"] for c in cells),
    }


def table(cells: list[dict]) -> str:
    """The summary as Markdown."""
    lines = [
        "| noise | d | points | method | mean | of manifolds | sd | bootstrap sd / sd | intervals with the truth |"
    ]
    lines.append("|" + " --- |" * 9)
    for noise, d, n, method in itertools.product(NOISES, DIMENSIONS, SIZES, METHODS):
        row = pooled([c for c in cells if (c["noise"], c["d"], c["n"]) == (noise, d, n)], method)
        lines.append(
            f"| {noise:g} | {d} | {n} | {method} | {row['mean']:.2f} | {row['lowest']:.2f} to {row['highest']:.2f} "
            f"| {row['spread']:.2f} | {row['bootstrap_over_spread']:.2f} | {row['covered']:.0%} |"
        )
    lines += ["", "| manifold | noise | d | mle | fit | levina-bickel | ess |", "|" + " --- |" * 7]
    for c in cells:
        if "crosscheck" in c:
            values = [c["mle"]["mean"], c["fit"]["mean"], *c["crosscheck"].values()]
            told = " | ".join(f"{value:.2f}" for value in values)
            lines.append(f"| {c['manifold']} | {c['noise']:g} | {c['d']} | {told} |")
    return "\n".join(lines)


def plot(cells: list[dict], out: Path) -> None:
    """One panel a manifold: estimate over truth, mean and spread over clouds; the cross-checks at 1000 points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(MANIFOLDS), figsize=(13, 6.6), sharex=True, sharey=True)
    for (row, noise), (column, name) in itertools.product(enumerate(NOISES), enumerate(MANIFOLDS)):
        axis = axes[row][column]
        axis.plot(DIMENSIONS, DIMENSIONS, color="grey", linewidth=1, label="truth")
        mine = [c for c in cells if (c["manifold"], c["noise"]) == (name, noise)]
        for n in SIZES:
            at = [c["mle"] for c in mine if c["n"] == n]
            mean, sd = ([c[key] for c in at] for key in ("mean", "sd_over_clouds"))
            axis.errorbar(
                DIMENSIONS, mean, [1.96 * s for s in sd], marker=".", capsize=2, label=f"TwoNN mle, {n} points"
            )
        for other, marker in (("levina-bickel", "x"), ("ess", "+")):
            values = [c["crosscheck"][other] for c in mine if "crosscheck" in c]
            axis.plot(DIMENSIONS, values, marker, color="black", label=f"{other}, {CHECKED} points")
        axis.set_title(f"{name}, {f'noise {noise:.0%}' if noise else 'clean'}", fontsize=10)
        axis.set_xticks(DIMENSIONS)
    figure.supxlabel("true dimension")
    figure.supylabel("estimate (bars: 1.96 sd over clouds)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncol=6, fontsize=9)
    figure.tight_layout(rect=(0.01, 0, 1, 0.95))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes JSON and the plot."""
    parser = argparse.ArgumentParser(description="TwoNN on clouds of known dimension.")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=results_of("dimension"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/dimension.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.process_time()  # of this thread's work: the wall's clock also counts who else uses the machine
    cells = [cell(*key, options.seeds) for key in itertools.product(MANIFOLDS, NOISES, DIMENSIONS, SIZES)]
    seconds = round(time.process_time() - started)
    machine = {"cpu": platform.processor() or platform.machine(), "threads": 1, "cpu_seconds": seconds}
    found = {"machine": machine, "torch": torch.__version__, "seeds": options.seeds, "cells": cells}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    plot(cells, options.plot)
    print(table(cells), f"\n{seconds} s of the processor")
