"""A study that never ran: records with made-up figures, for tests of what is shown of them."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable
from pathlib import Path

from luthier.comparing.record import FILE, RUNS, Record, write

HOSTILE = "</script><script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">"
METHODS = {  # score, trained, step ratio, held text
    "base": (0.412, 0, None, None),
    "lora": (0.801, 460_800, 1.31, 0.041),
    "peft:lora": (0.799, 460_800, 1.52, 0.043),
    "dora": (0.806, 493_440, 1.87, 0.039),
    "wegeft": (0.812, 92_160, 1.33, 0.012),
    "loreft": (0.787, 41_760, 1.18, 0.006),
    "direft": (0.779, 41_760, 1.12, 0.007),
    "gelora": (0.804, 211_000, 1.29, 0.022),
    "full": (0.818, 134_515_008, 2.05, 0.162),
}
TOTAL = 134_515_008


def record(method: str, seed: int = 0, model: str = "smollm2", data: str = "arithmetic", rows: int = 200) -> Record:
    """A whole record of a made-up run."""
    score, trained, ratio, held = METHODS.get(method, METHODS["lora"])
    draw = random.Random(f"{method} {seed}")
    right = round(rows * (score + draw.gauss(0, 0.005)))
    hits, score = [1.0] * right + [0.0] * (rows - right), right / rows
    span = 20 + 9 * (sum(map(ord, method)) % 7)
    steps = range(1, 301) if trained else []
    falls = [(step, 0.7 + 1.9 * math.exp(-step / span) + draw.gauss(0, 0.12)) for step in steps]
    checks = [(step, 0.75 + 1.7 * math.exp(-step / span) + draw.gauss(0, 0.01)) for step in steps[29::30]]
    return Record(
        model=model, data=data, method=method, seed=seed, metric="number", score=score, metrics={"number": score},
        tests={data: {"number": score}}, rows=rows, hits={data: hits}, losses=falls, eval_losses=checks,
        trainable=trained, total=TOTAL, bytes=4 * trained, seconds=123.0, step_seconds=0.4 if ratio else None,
        step_ratio=ratio and ratio + draw.gauss(0, 0.02), peak_bytes=(trained * 12 + 210_000_000) if trained else None,
        forgetting={"held text loss": (3.1, 3.1 + held + draw.gauss(0, 0.002))} if held else {},
        intruders={"count": 3.0, "null": 1.0, "matrices": 60.0} if method in ("lora", "full") else None,
        samples=[
            {"prompt": "A shop sells 12 pears a day. How many pears in 5 days?", "expected": "60",
             "answer": "60" if draw.random() < 0.7 else "A day has 12, so the answer is 17"},
            {"prompt": "Tom has 3 bags with 7 marbles and loses 4. How many are left?", "expected": "17",
             "answer": draw.choice(["17", "21", ""])},
        ],
        settings={"method": method, "form": {"rank": 8, "alpha": 16.0}, "training": {"lr": 2e-4, "steps": 300}},
        trials=[{"lr": 1e-4, "value": 0.91}, {"lr": 1e-3, "value": None}] if trained else [],
        budget="1%" if trained else None,
        notes=["exempt from the budget: it trains every parameter"] if method == "full" else [],
        command=f"luthier train smollm2 arithmetic --method {method} --seed {seed} --steps 300" if trained else "",
        versions={"luthier": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    )  # fmt: skip


def keep(folder: Path, found: Iterable[Record]) -> Path:
    """Writes the records where a study keeps them."""
    for number, each in enumerate(found):
        write(each.to_dict(), folder / RUNS / each.model / each.data / f"m{number}" / str(each.seed) / FILE)
    return folder


def study(folder: Path, seeds: int = 3, data: tuple[str, ...] = ("arithmetic",)) -> Path:
    """Every method with every seed, on each data set."""
    return keep(folder, [record(m, s, data=d) for d in data for m in METHODS for s in range(seeds)])


def hostile(folder: Path) -> Path:
    """A study whose values try to be more than text."""
    bad = dataclasses.replace(
        record(HOSTILE),
        samples=[{"prompt": HOSTILE, "expected": HOSTILE, "answer": HOSTILE}],
        notes=[HOSTILE], command=f"luthier train {HOSTILE}", settings={HOSTILE: HOSTILE}, versions={"torch": HOSTILE},
        metric=HOSTILE, budget=HOSTILE, forgetting={HOSTILE: (1.0, 0.9)},
    )  # fmt: skip
    return keep(folder, [bad, record("lora"), record("base")])
