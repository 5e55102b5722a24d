"""What an adapter costs, measured: training step, forward pass, decoding, mixed batches, memory.

Everything takes turns within a round; medians of the rounds, and the quartiles of the ratios to the base of the same
round. Results and a plot go to bench/results, under the name of the machine.

    make bench                                        # or: python -m bench speed
    python -m bench speed --dtype bfloat16 --rounds 9
    python -m bench speed --only train decode
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from bench.speed import passes
from bench.speed.adapters import growth, loading
from bench.speed.contestants import trained
from bench.speed.machine import Size, about, fitting_size, slug
from bench.speed.memory import memory_of
from bench.speed.plot import plot
from bench.speed.products import products
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

TIMED = {
    "train": ("training step", passes.train_steps),
    "forward": ("forward pass", passes.forwards),
    "decode": ("one token, cached", passes.decodes),
    "mixed": ("one token of 8 rows, 8 adapters", passes.mixed_decodes),
}
MEMORY, GROWTH, LOADING, PRODUCTS = "memory", "growth", "loading", "products"
ALL = [*TIMED, MEMORY, GROWTH, LOADING, PRODUCTS]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints tables, writes JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--out", type=Path, default=results_of(f"speed-{slug()}").with_suffix(""))
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {"machine": about(), "size": vars(fitting_size()), "rounds": options.rounds}
    console = Console()
    for dtype in options.dtype:
        found[dtype] = measured(dtype, options, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    file = options.out.with_suffix(".json")
    if file.exists():  # parts measured before, on the same machine, stay
        found = joined(json.loads(file.read_text()), json.loads(json.dumps(found)))
    file.write_text(json.dumps(found, indent=1) + "\n")
    plot(found, options.out.with_suffix(".png"))
    console.print(f"{options.out}.json and .png")


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old result with what was measured anew, if both are of the same machine and sizes."""
    if any(old.get(key) != new[key] for key in ("machine", "size")):
        return new
    return {**old, **new, **{d: {**old.get(d, {}), **new[d]} for d in ("float32", "bfloat16") if d in new}}


def measured(dtype: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All that was asked for in one dtype."""
    size, found = fitting_size(), {}
    for key in (key for key in TIMED if key in options.only):
        title, works = TIMED[key]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"{title}, {dtype}", total=options.rounds + 1)
            made = works(size, getattr(torch, dtype))
            found[key] = passes.interleaved(made, options.rounds, partial(progress.advance, task))
        console.print(times_table(f"{title}, {dtype}", found[key]))
    if MEMORY in options.only:
        names = trained(size, getattr(torch, dtype))
        with Progress(console=console, transient=True) as progress:
            found[MEMORY] = {n: memory_of(n, size, dtype) for n in progress.track(names, description=MEMORY)}
        console.print(memory_table(f"memory beyond the model, MiB, {dtype}", found[MEMORY]))
    if GROWTH in options.only:
        found[GROWTH] = grown(size, getattr(torch, dtype), console)
    if LOADING in options.only:
        found[LOADING] = loading(size, getattr(torch, dtype))
        table = Table("adapters loaded", "load one more, ms", "switch, ms", title=f"loading, {dtype}")
        for count, row in found[LOADING].items():
            table.add_row(str(count), f"{row['load']:.0f}", f"{row['switch']:.2f}")
        console.print(table)
    if PRODUCTS in options.only:
        found[PRODUCTS] = products(size, getattr(torch, dtype))
        thin, layers = (1e3 * found[PRODUCTS][key] for key in ("thin", "layers"))
        console.print(
            f"bare products of a training step, {dtype}: LoRA's {thin:.0f} ms, the layers' own {layers:.0f} ms"
        )
    return found


def grown(size: Size, dtype: torch.dtype, console: Console) -> dict[str, dict[int, dict[str, float]]]:
    """LoRA's step as one thing after another grows."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    table = Table("", "", "ms", "over the base", "MiB kept beyond the base's", title=f"LoRA's growth, {dtype}")
    for along, value, row in growth(size, dtype):
        found.setdefault(along, {})[value] = row
        cells = (f"{1e3 * row['seconds']:.0f}", f"{row['over_base']:.3f}", f"{row['saved_mib']:.1f}")
        table.add_row(along, str(value), *cells)
    console.print(table)
    return found


def times_table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    """Times and ratios."""
    table = Table("", "ms", "over the base", "quartiles", title=title)
    for name, row in rows.items():
        ratio, spread = f"{row['over_base']:.3f}", f"{row['low']:.2f} to {row['high']:.2f}"
        table.add_row(name, f"{1000 * row['seconds']:.1f}", ratio, spread)
    return table


def memory_table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    """Kept activations and peaks."""
    table = Table("", "kept for the backward pass", "peak", title=title)
    for name, row in rows.items():
        table.add_row(name, f"{row['saved']:.0f}", f"{row['peak']:.0f}")
    return table
