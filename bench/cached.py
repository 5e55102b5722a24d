"""Epochs that begin at a block: what the second takes of the first, and whether its losses stay.

SmolLM2-135M with LoRA of rank 8 on every linear layer of its upper blocks, on GSM8K's rows in batches of 8, packed:
each run in a process of its own, with what enters the lowest of these blocks kept (`cache_frozen=on`, and in bfloat16)
and without, taking turns. Told are the seconds of each epoch, the processor's time for it (the steadier figure on a
machine that is shared), the bytes kept, and by how much losses differ.

    python -m bench cached --questions gsm8k/train.jsonl [--blocks 15 21] [--rows 48] [--rounds 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._registry import results_of
from bench.packing import questions
from bench.speed.machine import about

BLOCKS, EPOCHS = 30, 3
WAYS = ("off", "on", "bfloat16")
ONE = """
import json, sys, time
import torch, transformers
import luthier as lt
from luthier.training import Run, Training
from luthier.training.folder import read_record
data, out, first, way, epochs = sys.argv[1:6]
class Clock(transformers.TrainerCallback):
    seconds, cpu = [], []
    def on_epoch_begin(self, *args, **kwargs):
        self.began = time.perf_counter(), time.process_time()
    def on_epoch_end(self, *args, **kwargs):
        self.seconds.append(time.perf_counter() - self.began[0])
        self.cpu.append(time.process_time() - self.began[1])
training = Training(epochs=int(epochs), batch=8, eval_fraction=0, save_every=10**6, lr=1e-4, cache_frozen=way)
where = f"layers({first}, 29) & all-linear"
run = Run("smollm2-135m", data, lt.LoRA(rank=8), out=out, where=where, training=training)
found = lt.train(run, progress=False, callbacks=[Clock()])
told = {"seconds": Clock.seconds, "cpu_seconds": Clock.cpu, "bytes": read_record(found.folder)["frozen"].get("bytes")}
print(json.dumps(told | {"losses": [loss for _, loss in found.losses], "threads": torch.get_num_threads()}))
"""


def run(data: Path, out: Path, first: int, way: str) -> dict[str, Any]:
    """The figures of one run in a process of its own."""
    words = [sys.executable, "-c", ONE, *map(str, (data, out, first, way, EPOCHS))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of the epochs, what later ones take of the first, and how far losses are from those without."""
    told: dict[str, Any] = {}
    for way, runs in found.items():
        told[way] = {"bytes": runs[0]["bytes"]}
        for kind in ("seconds", "cpu_seconds"):
            epochs = [statistics.median(r[kind][epoch] for r in runs) for epoch in range(EPOCHS)]
            ratios = [each / r[kind][0] for r in runs for each in r[kind][1:]]
            told[way] |= {kind: [round(each, 2) for each in epochs], f"{kind}_of_first": [round(r, 3) for r in ratios]}
        pairs = zip(runs[0]["losses"], found["off"][0]["losses"], strict=True)
        told[way]["largest_relative_difference_of_losses"] = max(abs(a - b) / abs(b) for a, b in pairs)
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all ways in turn for each lowest block, prints and writes JSON; what was measured of others stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True, help="JSONL with question and answer (GSM8K's)")
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=[BLOCKS // 2, 21], help="lowest blocks with an adapter"
    )
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=results_of("cached"))
    given = parser.parse_args(arguments)
    made: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for first in given.blocks:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        with tempfile.TemporaryDirectory(prefix="luthier-cached-") as folder:
            data = Path(folder) / "rows.jsonl"
            rows = questions(given.questions, given.rows)
            data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            for number in range(given.rounds):
                for way in WAYS:
                    found[way].append(run(data, Path(folder) / f"{way}-{number}", first, way))
                    told = {key: value for key, value in found[way][-1].items() if key != "losses"}
                    print(first, way, told, file=sys.stderr, flush=True)
        made[f"from block {first}"] = summary(found) | {
            "rows": given.rows, "rounds": given.rounds, "threads": found["off"][0]["threads"],
            "machine": about(), "cores": len(os.sched_getaffinity(0)), "measured": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        given.out.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made, indent=1))
