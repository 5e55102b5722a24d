"""How fast rows are encoded, by how many processes, and what memory a large JSONL takes from its first byte to a step.

Writes a JSONL of `--megabytes` of chats and trains `--steps` steps on it, in a process of its own: once with an empty
cache, once more with what the first left. Memory is the highest resident set of that process; beside it stands that
of the same run on some 60 rows, which is what the model, torch and transformers take. The resident set of forked
processes that encode is told apart.

python -m bench encoding [--megabytes 200] [--model smollm2-135m] [--workers 2] [--out bench/results/encoding.json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._registry import results_of

WORDS = (
    "the of and to in is that it was for on are with as his they at be this from have or by one had not but what all",
    "were when we there can an your which their said if do will each about how up out them then she many some so these",
    "would other into has more her two like him see time could no make than first been its who now people my made over",
    "did down only way find use may water long little very after words called just where most know 3.14 naïve café",
)
ONE = """
import json, resource, sys, time
import luthier as lt
from luthier.training import Run, Training
import luthier.training.session as session
model, data, out, cut, steps = sys.argv[1:6]
began = time.monotonic()
run = Run(model, data, lt.LoRA(rank=4), out=out, training=Training(steps=int(steps), batch=1, max_length=int(cut),
          eval_fraction=0.0001, save_every=int(steps), eval_every=10**9))
plain = session.prepare
def timed(run):
    global ready
    found = plain(run)
    ready = time.monotonic() - began
    return found
session.prepare = timed
lt.train(run, overwrite=True, progress=False)
taken = time.monotonic() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps({"prepared_seconds": ready, "seconds": taken, "peak_mib": peak, "largest_worker_mib": worker}))
"""


def write_chats(path: Path, megabytes: float, seed: int = 0) -> int:
    """Conversations of one turn, of some 60 to 1,200 characters an answer; returns how many."""
    draw, size, rows, words = random.Random(seed), 0, 0, " ".join(WORDS).split()
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            asked, answer = (" ".join(draw.choices(words, k=draw.randint(12, k))) for k in (40, 240))
            turns = [{"role": "user", "content": f"{rows}: {asked}?"}, {"role": "assistant", "content": answer}]
            size += file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
            rows += 1
    return rows


def run(model: str, data: Path, work: Path, steps: int, workers: int | None) -> dict[str, Any]:
    """The figures of one run in a process of its own."""
    told = {"LUTHIER_WORKERS": str(workers)} if workers else {}
    environment = os.environ | told
    words = [sys.executable, "-c", ONE, model, str(data), str(work / "run"), "1024", str(steps)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {key: round(value, 1) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def clear() -> None:
    """Takes encoded rows out of the cache."""
    from luthier.core.cached import listed, remove

    for entry in listed():
        if entry.kind == "encoded":
            remove(entry)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the rows, runs, prints and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--workers", type=int, default=None, help="processes that encode (default: one a core)")
    parser.add_argument("--out", type=Path, default=results_of("encoding"))
    options = parser.parse_args(arguments)
    from luthier.models import resolve

    model = str(resolve(options.model))  # before the cache is another
    with tempfile.TemporaryDirectory(prefix="luthier-encoding-") as folder:
        work = Path(folder)
        os.environ["LUTHIER_CACHE"] = str(work / "cache")
        few, many = work / "few.jsonl", work / "many.jsonl"
        write_chats(few, 0.05)
        rows = write_chats(many, options.megabytes)
        found: dict[str, Any] = {"model": options.model, "megabytes": options.megabytes, "rows": rows}
        found["few_rows"] = run(model, few, work, options.steps, options.workers)
        clear()
        found["first_start"] = run(model, many, work, options.steps, options.workers)
        found["second_start"] = run(model, many, work, options.steps, options.workers)
        over = found["first_start"]["peak_mib"] - found["few_rows"]["peak_mib"]
        found["over_the_model_mib"] = round(over, 1)
        found["encoded_bytes"] = sum(p.stat().st_size for p in (work / "cache" / "encoded").rglob("*") if p.is_file())
        found["cores"] = len(os.sched_getaffinity(0))
        found["measured"] = time.strftime("%Y-%m-%d")
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
