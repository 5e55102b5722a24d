"""DEALRec and Adapt-∞ beside chance on MiniLM: what is learned from 240 of 960 rows, some repeated, some mislabelled.

The pool has twenty intents of CLINC150, 40 rows each, 80 rows twice and 80 whose label is of another intent. A
selection takes `TAKEN` rows, LoRA is fitted to them in as many steps each, and the accuracy on the test rows is told,
as well as how many taken rows are repeated or mislabelled. The null is `random`. Seeds that were found before stay.

    python -m bench diagnosis-selections --data FOLDER [--steps 60] [--seeds 3]
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.diagnosis._fits import fit, parsed, recorded, written

import luthier as lt
from luthier import data
from luthier.core.contracts.component import find
from luthier.core.contracts.selection import Pool, Selection
from luthier.methods.row_model import Reader

MODEL, TASK, INTENTS, EACH, SPOILT, TAKEN = "minilm-l6", "classification", 20, 40, 80, 240
WAYS = ("random", "dealrec", "adapt_inf")
Row = dict[str, str]


def intents(file: Path) -> dict[str, list[Row]]:
    """The rows of the first intents, by intent."""
    found = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["label"]].append({"text": row["text"], "label": row["label"]})
    return {name: found[name] for name in sorted(found)[:INTENTS]}


def pool_of(rows: dict[str, list[Row]], seed: int) -> list[Row]:
    """Rows with repetitions and wrong labels among them; `kind` says which a row is."""
    draw, names = random.Random(seed), list(rows)
    clean = [row | {"kind": "clean"} for name in names for row in rows[name][:EACH]]
    twice = [row | {"kind": "repeated"} for row in draw.sample(clean, SPOILT)]
    spare = draw.sample([row for name in names for row in rows[name][EACH:]], SPOILT)
    wrong = [row | {"label": draw.choice([n for n in names if n != row["label"]]), "kind": "wrong"} for row in spare]
    found = [*clean, *twice, *wrong]
    draw.shuffle(found)
    return found


def one(way: str, seed: int, rows: dict[str, list[Row]], tests: str, work: Path, steps: int) -> dict[str, Any]:
    """What a way takes, and what is learned from it."""
    pool, began = pool_of(rows, seed), time.monotonic()
    plain = [{"text": row["text"], "label": row["label"]} for row in pool]
    examples = data.load(written(work / "pool.jsonl", plain))
    selection = find("selections", way, Selection)()
    chosen = data.choose(selection, Pool(examples, None, seed, model=Reader(MODEL, TASK)), TAKEN)
    taken = [pool[row.row - 1]["kind"] for row in chosen.examples.rows]
    kept = [plain[row.row - 1] for row in chosen.examples.rows]
    chose = time.monotonic() - began
    options: dict[str, Any] = {"task": TASK, "batch": 16, "max_length": 48, "lr": 2e-3, "seed": seed}
    adapter = fit(MODEL, kept, work / f"{way}-{seed}", steps=steps, **options)
    loaded = lt.model(MODEL, task=TASK, labels=sorted(rows))
    fitted = lt.load(loaded.model, adapter)
    accuracy = lt.evaluate(fitted, loaded.processor, data.load(tests), progress=False).score
    return {"way": way, "seed": seed, "accuracy": accuracy, "seconds": round(chose, 1),
            **{kind: taken.count(kind) for kind in ("clean", "repeated", "wrong")}}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Chooses, fits, scores."""
    given = parsed(arguments, __doc__, "diagnosis-selections", data=True, steps=60, seeds=3)
    rows = intents(given.data / "clinc150/train.jsonl")
    runs = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        test = [row for each in intents(given.data / "clinc150/test.jsonl").values() for row in each]
        tests = written(work / "test.jsonl", test)
        for seed in range(len(runs) // len(WAYS), given.seeds):
            runs += [one(way, seed, rows, tests, work, given.steps) for way in WAYS]
            recorded(given.out, runs)


if __name__ == "__main__":
    main()
