"""Whole training loops over padded rows in random order, over rows by length, and over packed batches.

Each is a run of `luthier train` in a process of its own, and they take turns: SmolLM2-135M with LoRA on rows of
question and answer, and MiniLM as a classifier of short texts. Told are the seconds of the loop (without loading), the
processor's time for it (the steadier figure on a machine that is shared), the highest resident set of the process, and
by how much the losses of packed batches differ from those of padded ones in the same order.

python -m bench packing --questions gsm8k/train.jsonl --texts clinc150/train.jsonl [--rows 64] [--rounds 1]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._registry import results_of

WAYS: dict[str, dict[str, Any]] = {
    "padded": {"order": "random", "pack": False},
    "by length": {"order": "length", "pack": False},
    "packed": {"order": "random", "pack": True},
}
ONE = """
import json, resource, sys, time
import transformers
import luthier as lt
from luthier.training import Run, Training
class Clock(transformers.TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        self.began = time.process_time()
    def on_train_end(self, *args, **kwargs):
        self.taken = time.process_time() - self.began
clock = Clock()
model, data, out, settings = sys.argv[1:5]
training = Training(epochs=1, eval_fraction=0, save_every=10**6, **json.loads(settings))
run = Run(model, data, lt.LoRA(rank=8), out=out, where="all-linear", training=training)
found = lt.train(run, progress=False, callbacks=[clock])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
told = {"seconds": found.seconds, "cpu_seconds": clock.taken, "peak_mib": peak}
print(json.dumps(told | {"losses": [loss for _, loss in found.losses]}))
"""


def questions(file: Path, count: int) -> list[dict[str, Any]]:
    """Rows of a prompt with its completion, drawn by a seed."""
    return [{"prompt": row["question"], "completion": row["answer"]} for row in drawn(file, count)]


def texts(file: Path, count: int) -> list[dict[str, Any]]:
    """Short texts with a label each, drawn by a seed."""
    return [{"text": row["text"], "label": str(row["label"])} for row in drawn(file, count)]


def drawn(file: Path, count: int) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    with file.open(encoding="utf-8") as lines:
        return random.Random(0).sample([json.loads(line) for line in lines], count)


def run(model: str, data: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run in a process of its own."""
    words = [sys.executable, "-c", ONE, model, str(data), str(out), json.dumps(settings)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def contest(model: str, rows: list[dict[str, Any]], batch: int, rounds: int, work: Path) -> dict[str, Any]:
    """All ways in turn, `rounds` times."""
    data = work / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way, settings in WAYS.items():
            out = work / f"{way.replace(' ', '-')}-{number}"
            found[way].append(run(model, data, out, {"batch": batch, **settings}))
            print(way, {key: value for key, value in found[way][-1].items() if key != "losses"}, file=sys.stderr)
    return {"model": model, "rows": len(rows), "batch": batch, "rounds": rounds, **summary(found)}


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and ranges, shares of the padded way of the same round, and what packing changes in a loss."""
    told: dict[str, Any] = {}
    for way, runs in found.items():
        seconds = [r["seconds"] for r in runs]
        told[way] = {
            "seconds": round(statistics.median(seconds), 2),
            "seconds_range": [round(min(seconds), 2), round(max(seconds), 2)],
            "of_padded": round(statistics.median(share(found, way, "seconds")), 3),
            "cpu_seconds": round(statistics.median(r["cpu_seconds"] for r in runs), 2),
            "cpu_of_padded": round(statistics.median(share(found, way, "cpu_seconds")), 3),
            "peak_mib": round(statistics.median(r["peak_mib"] for r in runs)),
            "peak_of_padded": round(statistics.median(share(found, way, "peak_mib")), 3),
        }
    pairs = zip(found["padded"][0]["losses"], found["packed"][0]["losses"], strict=True)
    told["largest_relative_difference_of_losses"] = max(abs(a - b) / abs(a) for a, b in pairs)
    return told


def share(found: dict[str, list[dict[str, Any]]], way: str, what: str) -> list[float]:
    """A figure of a way as a share of the padded way's, in each round."""
    return [own[what] / other[what] for own, other in zip(found[way], found["padded"], strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what data are given for, prints and writes JSON; what was measured of the other stays."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=Path, help="JSONL with question and answer (GSM8K's)")
    parser.add_argument("--texts", type=Path, help="JSONL with text and label (CLINC150's)")
    parser.add_argument("--rows", type=int, default=64, help="rows of questions")
    parser.add_argument("--short", type=int, default=1024, help="rows of short texts")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=results_of("packing"))
    options = parser.parse_args(arguments)
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory(prefix="luthier-packing-") as folder:
        for name, model, file, made, count, batch in (
            ("questions", "smollm2-135m", options.questions, questions, options.rows, 8),
            ("texts", "minilm-l6", options.texts, texts, options.short, 32),
        ):
            if file is not None:
                (work := Path(folder) / name).mkdir()
                machine = {
                    "processor": platform.processor() or platform.machine(),
                    "measured": time.strftime("%Y-%m-%d"),
                }
                machine |= {"cores": len(os.sched_getaffinity(0)), "threads": os.environ.get("OMP_NUM_THREADS")}
                found[name] = contest(model, made(file, count), batch, options.rounds, work) | machine
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
