"""Three tasks' LoRA adapters of one base as one, by every combination of the registry.

For each seed, the base of `_intents.py` is fitted to each of its three tasks. The adapters are merged by every
combination at its own settings, with each of `WEIGHTS` for all of them, and the result is scored on all tasks, beside
the base and each adapter alone.

    python -m bench axes-combinations --data FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.axes._intents import GROUPS, Fit, Intents, train
from bench.axes._study import difference, markdown, mean, parsed

import luthier as lt
from luthier.core.contracts.component import names

FORM, RATE, STEPS = lt.LoRA(rank=8, alpha=16), 4e-3, 40
"""The rate that bench/axes/inits.py chose for LoRA."""
WEIGHTS = (1.0, 1 / GROUPS)
SINGLE, BASE = "adapter", "the base"


def todo(args: argparse.Namespace) -> Iterator[tuple[str, float, int]]:
    """(way, weight, seed) of the scores that are not kept yet, the adapters of a seed ahead of what merges them."""
    singles = [(f"{SINGLE} {task}", 1.0) for task in range(GROUPS)]
    for seed in range(args.seeds):
        for way, weight in [(BASE, 1.0), *singles, *itertools.product(names("combinations"), WEIGHTS)]:
            if not args.ledger.runs(way=way, weight=weight, seed=seed):
                yield way, weight, seed


def run(ground: Intents, work: Path, way: str, weight: float, seed: int) -> dict[str, Any]:
    """One row of scores, [task]."""
    model, folders = ground.base.model, [work / f"lora-{seed}-{task}" for task in range(GROUPS)]
    with tempfile.TemporaryDirectory() as scratch:
        if way.startswith(SINGLE):
            task = int(way.split()[1])
            train(ground.base, ground.training(task), Fit(FORM, rate=RATE, steps=STEPS, seed=seed))
            shutil.rmtree(folders[task], ignore_errors=True)
            lt.save(model, folders[task])
        elif way != BASE:
            lt.combine(way, folders, base=model, out=Path(scratch) / "merged", weights=[weight] * GROUPS)
            lt.load(model, Path(scratch) / "merged")
        scores = ground.scores()
    if way != BASE:
        lt.detach(model)
    return {"way": way, "weight": weight, "seed": seed, "accuracy": [accuracy for accuracy, _ in scores]}


def table(args: argparse.Namespace) -> str:
    """Accuracy on each task and over all, and how much of what the adapters gained on their own tasks is kept."""
    rows = []
    for way, weight in dict.fromkeys((r["way"], r["weight"]) for r in args.ledger.runs()):
        own = args.ledger.runs(way=way, weight=weight)
        tasks = [mean([100 * r["accuracy"][task] for r in own], 1) for task in range(GROUPS)]
        whole = {r["seed"]: 100 * sum(r["accuracy"]) / GROUPS for r in own}
        base = {r["seed"]: 100 * sum(r["accuracy"]) / GROUPS for r in args.ledger.runs(way=BASE)}
        gained = {
            seed: 100 * sum(r["accuracy"][i] for i, r in enumerate(singles(args, seed))) / GROUPS - base[seed]
            for seed in whole
            if len(singles(args, seed)) == GROUPS
        }
        kept = [100 * (whole[seed] - base[seed]) / gained[seed] for seed in gained]
        merged = not way.startswith(SINGLE) and way != BASE
        name = f"{way}, weights {weight:.2g}" if merged else way
        gap = "-" if way == BASE else difference(whole, base, 1)
        share = mean(kept, 0) if merged and kept else "-"
        rows.append([name, *tasks, mean(list(whole.values()), 1), gap, share])
    tasks = [f"task {task}, %" for task in range(GROUPS)]
    return markdown(["", *tasks, "all, %", "against the base", "of the adapters' own gain, %"], rows)


def singles(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The rows of the adapters alone, by task."""
    found = [args.ledger.runs(way=f"{SINGLE} {task}", seed=seed) for task in range(GROUPS)]
    return [each[0] for each in found if each]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    args = parsed(arguments, __doc__, "combinations", seeds=2)
    if not args.table:
        ground = Intents(args.data, args.work)
        for way, weight, seed in todo(args):
            args.ledger.add(run(ground, args.work / "adapters", way, weight, seed))
    print(table(args))
