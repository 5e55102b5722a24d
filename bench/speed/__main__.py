"""What an adapter costs, measured: training step, forward pass, decoding, mixed batches, memory.

Everything takes turns within a round; medians of the rounds, and the quartiles of the ratios to the base of the same
round. Results and a plot go to bench/results, under the name of the machine.

    make bench                                        # or: python -m bench.speed
    python -m bench.speed --dtype bfloat16 --rounds 9
    python -m bench.speed --only train decode
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.speed import passes
from bench.speed.contestants import trained
from bench.speed.machine import about, fitting_size
from bench.speed.memory import memory_of
from bench.speed.plot import plot

TIMED = {
    "train": ("training step", passes.train_steps),
    "forward": ("forward pass", passes.forwards),
    "decode": ("one token, cached", passes.decodes),
    "mixed": ("one token of 8 rows, 8 adapters", passes.mixed_decodes),
}
MEMORY = "memory"


def main() -> None:
    """Measures, prints tables, writes JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=[*TIMED, MEMORY], default=[*TIMED, MEMORY])
    parser.add_argument("--out", type=Path, default=Path("bench/results/speed"))
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": about(), "size": vars(fitting_size()), "rounds": options.rounds}
    console = Console()
    for dtype in options.dtype:
        found[dtype] = measured(dtype, options, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, options.out.with_suffix(".png"))
    console.print(f"{options.out}.json and .png")


def measured(dtype: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All that was asked for in one number format."""
    size, found = fitting_size(), {}
    for key in (key for key in TIMED if key in options.only):
        title, works = TIMED[key]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"{title}, {dtype}", total=options.rounds + 1)
            made = works(size, getattr(torch, dtype))
            found[key] = passes.interleaved(made, options.rounds, lambda: progress.advance(task))
        console.print(times_table(f"{title}, {dtype}", found[key]))
    if MEMORY in options.only:
        names = trained(size, getattr(torch, dtype))
        with Progress(console=console, transient=True) as progress:
            found[MEMORY] = {n: memory_of(n, size, dtype) for n in progress.track(names, description=MEMORY)}
        console.print(memory_table(f"memory beyond the model, MiB, {dtype}", found[MEMORY]))
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


if __name__ == "__main__":
    main()
