"""Which rows to learn from: every selection of the registry at the same number of rows, for one target.

The pool is the training rows of all three tasks of `_intents.py`, a target row for each of `TARGETS` of the first
task's intents stands for what is wanted, and the base is fitted to the `ROWS` rows that a selection takes. Scored is
the accuracy on test rows of those intents. `all` learns from the whole pool in as many steps; `oracle`, the frame,
draws from the rows of those intents, which no selection is told.

    python -m bench axes-selections --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.axes._intents import SHOTS, Fit, Intents, score, train
from bench.axes._study import by_seed, difference, markdown, mean, parsed

import luthier as lt
from luthier import data
from luthier.core.contracts.component import find, names
from luthier.core.contracts.selection import Pool, Selection
from luthier.methods.row_model import Reader

TARGETS, EACH, ROWS, STEPS, RATE = 15, 4, 300, 40, 4e-3
"""Intents wanted, target rows of each, rows taken; the rate that bench/axes/inits.py chose for LoRA."""
FRAMES = ("all", "oracle")


def ways() -> list[str]:
    """The selections that score rows, and the frames."""
    return [*names("selections"), *FRAMES]


def rows_of(ground: Intents) -> tuple[list[dict[str, str]], list[dict[str, str]], list[str]]:
    """(pool, target rows, the intents that are wanted); the target's rows are no part of the pool."""
    by_label = defaultdict(list)
    for row in ground.rows("train"):
        by_label[row["label"]].append(row)
    wanted = ground.groups[0][:TARGETS]
    target = [row for name in wanted for row in by_label[name][SHOTS : SHOTS + EACH]]
    starts = {name: SHOTS + EACH * (name in wanted) for name in ground.names}
    return [row for name in ground.names for row in by_label[name][starts[name] :]], target, wanted


def chosen(ground: Intents, way: str, seed: int, work: Path) -> tuple[list[dict[str, str]], float]:
    """(the rows that a way takes, the share of them that is of wanted intents)."""
    pool, target, wanted = rows_of(ground)
    if way == "all":
        kept = pool
    elif way == "oracle":
        kept = random.Random(seed).sample([row for row in pool if row["label"] in wanted], ROWS)
    else:
        examples, aim = (data.load(str(written(rows, work / name))) for rows, name in ((pool, "pool"), (target, "aim")))
        selection = find("selections", way, Selection)()
        reader = Reader("the base", "classification", loaded=ground.base)
        found = data.choose(selection, Pool(examples, aim, seed, model=reader), ROWS)
        kept = [{"text": row.text, "label": row.label} for row in found.examples.rows]
    return kept, sum(row["label"] in wanted for row in kept) / len(kept)


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    """Rows as a file of JSON lines."""
    path = path.with_suffix(".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(ground: Intents, way: str, seed: int, work: Path) -> dict[str, Any]:
    """One choice, one fit, scored."""
    _, _, wanted = rows_of(ground)
    rows, share = chosen(ground, way, seed, work)
    features = ground.encoded(rows)
    train(ground.base, features, Fit(lt.LoRA(rank=8, alpha=16), rate=RATE, steps=STEPS, seed=seed))
    tested = ground.encoded([row for row in ground.rows("test") if row["label"] in wanted])
    accuracy, loss = score(ground.base.model, ground.base.processor, tested)
    lt.detach(ground.base.model)
    return {"way": way, "seed": seed, "rows": len(rows), "wanted": share, "accuracy": accuracy, "loss": loss}


def bare(ground: Intents) -> dict[str, Any]:
    """The base, scored."""
    wanted = rows_of(ground)[2]
    tested = ground.encoded([row for row in ground.rows("test") if row["label"] in wanted])
    accuracy, loss = score(ground.base.model, ground.base.processor, tested)
    return {"way": "the base", "seed": 0, "rows": 0, "wanted": 0.0, "accuracy": accuracy, "loss": loss}


def table(args: argparse.Namespace) -> str:
    """Means over the seeds, and the paired difference to rows by chance."""
    rows, chance = [], by_seed(args.ledger.runs(way="random"), "accuracy")
    for way in ["the base", *ways()]:
        own = args.ledger.runs(way=way)
        if own:
            mine, other = ({seed: 100 * a for seed, a in each.items()} for each in (by_seed(own, "accuracy"), chance))
            rows.append(
                [
                    way,
                    f"{own[0]['rows']:,}",
                    mean([100 * r["wanted"] for r in own], 0) if own[0]["rows"] else "-",
                    mean([100 * r["accuracy"] for r in own], 1),
                    "-" if way in ("random", "the base") else difference(mine, other, 1),
                    mean([r["loss"] for r in own]),
                ]
            )
    return markdown(["selection", "rows", "wanted, %", "accuracy, %", "against random", "loss"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    args = parsed(arguments, __doc__, "selections", seeds=2)
    if not args.table:
        ground = Intents(args.data, args.work)
        if not args.ledger.runs(way="the base"):
            args.ledger.add(bare(ground))
        for seed in range(args.seeds):
            for way in ways():
                if not args.ledger.runs(way=way, seed=seed):
                    args.ledger.add(run(ground, way, seed, args.work / "selections"))
    print(table(args))
