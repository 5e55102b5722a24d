"""How much GeLoRA's ranks move from sample to sample: pooling, number of rows, estimator and rounding.

Rows are cut into 5 parts that share none; each part of n rows gives its own ranks, and their differences, block by
block and pair by pair of parts, are the spread. One pass over the rows serves every pooling.

    python -m bench profiles MODEL DATA [--name smollm2-gsm8k] [--rows 5120] [--out bench/results/profiles.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from rich.console import Console
from rich.table import Table

import luthier as lt
from luthier import data, models
from luthier.core.numerics.profile import profile, rises
from luthier.core.sites.collect import Measured, collect
from luthier.measuring.calibration import Calibration, _arguments, batched, sample
from luthier.measuring.progress import told
from luthier.methods.statistics.states import POOLS, States

PARTS, SIZES = 5, (128, 256, 512, 1024)
ESTIMATORS = ("mle", "fit")


class Every(States):
    """The states under every pooling, from one pass."""

    def begin(self):
        return {pool: States(pool).begin() for pool in POOLS}

    def update(self, held, x, mask):
        return {pool: States(pool).update(held[pool], x, mask) for pool in POOLS}

    def results_of(self, held):
        return {pool: States(pool).result(held[pool])["states"] for pool in POOLS}


def states(model: str, source: str, rows: int, console: Console) -> Measured:
    """Of `rows` rows of the data, drawn by seed 0."""
    examples = data.load(source, skip_bad_rows=True)
    loaded = models.load(model, task=examples.task, labels=examples.labels)
    features = data.encode_all(
        examples, loaded.processor, task=examples.task, max_length=1024, labels=examples.labels, truncate=True
    )
    settings = Calibration(samples=rows)
    collator = data.collator_for(examples.task, loaded.processor)
    batches = list(batched(sample(features, settings), settings))
    with told(console, f"{model} reads {rows:,} rows") as shown:
        stream = (_arguments(collator(batch), loaded.model) for batch in shown(batches))
        return collect(loaded.model, stream, lt.select(loaded.model, "all-linear"), [Every()])


def ranks(found: Measured, rows: torch.Tensor, pool: str, estimator: str) -> tuple[list[float], dict[str, list[int]]]:
    """Dimensions at the boundaries and, for each rounding, the ranks of the blocks."""
    clouds = {path: tensors[pool][rows] for path, tensors in found.items()}
    boundaries = profile(clouds, method=estimator, resamples=2)
    rise = torch.tensor([each.value for each in rises(boundaries).values()]).clamp(min=0)
    rounded = {"nearest": rise.round(), "up": rise.ceil()}
    return [b.dimension.value for b in boundaries.values()], {k: (r.int() + 1).tolist() for k, r in rounded.items()}


def spread(found: Measured, pool: str, size: int, estimator: str) -> list[dict[str, Any]]:
    """For each rounding, how the ranks of the parts differ."""
    count = len(next(iter(found.values()))[pool])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    parts = [ranks(found, order[i * size : (i + 1) * size], pool, estimator) for i in range(PARTS)]
    dimensions = torch.tensor([part[0] for part in parts])
    made = []
    for rounding in ("nearest", "up"):
        each = torch.tensor([part[1][rounding] for part in parts])
        gaps = torch.stack([(a - b).abs() for a, b in itertools.combinations(each, 2)]).float()
        made.append(
            {
                "pool": pool,
                "rows": size,
                "estimator": estimator,
                "rounding": rounding,
                "dimension": [round(d, 2) for d in dimensions.mean(0).tolist()],
                "dimension_sd": round(float(dimensions.std(0).mean()), 3),
                "ranks": each.tolist(),
                "median_change": float(gaps.median()),
                "mean_change": round(float(gaps.mean()), 3),
                "largest_change": int(gaps.max()),
                "mean_rank": round(float(each.float().mean()), 3),
            }
        )
    return made


def study(found: Measured, console: Console) -> list[dict[str, Any]]:
    """Every pooling, size and estimator that the rows allow."""
    count = len(next(iter(found.values()))["mean"])
    sizes = [size for size in SIZES if size * PARTS <= count]
    made = []
    for pool, size, estimator in itertools.product(POOLS, sizes, ESTIMATORS):
        try:
            made += spread(found, pool, size, estimator)
        except lt.LuthierError as reason:
            console.print(f"{pool}, {size} rows, {estimator}: {reason}", highlight=False)
    return made


def table(made: list[dict[str, Any]]) -> Table:
    """A line for each setting."""
    columns = ("pool", "rows", "estimator", "rounding", "dimension_sd", "median_change", "mean_change",
               "largest_change", "mean_rank")  # fmt: skip
    shown = Table(*columns)
    for row in made:
        shown.add_row(*[str(row[column]) for column in columns])
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and adds the result to the file under its name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--name")
    parser.add_argument("--rows", type=int, default=PARTS * SIZES[-1])
    parser.add_argument("--out", type=Path, default=results_of("profiles"))
    args = parser.parse_args(arguments)
    console = Console()
    made = study(states(args.model, args.data, args.rows, console), console)
    console.print(table(made))
    held = json.loads(args.out.read_text()) if args.out.exists() else {}
    held[args.name or f"{args.model} on {Path(args.data).parent.name}"] = made
    args.out.write_text(json.dumps(held, indent=1) + "\n")
