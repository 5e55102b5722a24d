"""Projected per-sample gradients over the forward and backward passes alone: time, and memory over the model.

The floor is what fine-tuning does with the same batches: forward and backward passes that compute every weight's
gradient (`full`), or those with frozen weights (`frozen`, the least that any gradient takes). They take turns, so a
drift of the machine's speed falls on all. The memory is that of a process of its own.

    OMP_NUM_THREADS=1 python -m bench per_sample [--model smollm2-135m] [--rows 48] [--batch 8] [--memory-rows 96]
    OMP_NUM_THREADS=1 python -m bench per_sample --data digits --only memory --memory-rows 10000 --batch 32

Rows are chains of sums (reasoning-gym) unless --data names others; `digits` are rows of four digits, so 10,000 take
minutes. Writes bench/results/per_sample.json, beside what was measured on other rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from bench.speed.machine import about

import luthier as lt
from luthier import data
from luthier.core.sites.per_sample import Projection, per_sample
from luthier.methods.row_model import Reader, row_losses


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def batches_of(options: argparse.Namespace, rows: int):
    """(the loaded model, batches of the rows)."""
    with tempfile.TemporaryDirectory() as folder:
        examples = data.load(short(Path(folder), rows) if options.data == "digits" else options.data, limit=rows)
    reader = Reader(options.model, batch=options.batch, max_length=options.max_length)
    return reader, examples


def short(folder: Path, rows: int) -> str:
    """The file of the first numbers of four digits, a token each."""
    (folder / "digits.jsonl").write_text("".join(json.dumps({"text": f"{n:04}"}) + "\n" for n in range(rows)))
    return str(folder / "digits.jsonl")


def timed(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the floors, of the batched pass, and of an adapter's gradients row by row."""
    reader, examples = batches_of(options, options.rows)
    batches, model = list(reader.batches(examples)[0]), reader.loaded.model
    sites = list(lt.select(model, "all-linear"))
    weights = [model.get_submodule(site.path).weight for site in sites]
    found: dict[str, float] = dict.fromkeys(("full", "frozen", "projected"), 0.0)

    def full(batch) -> None:
        for p in model.parameters():
            p.requires_grad_(False)
        for p in weights:
            p.requires_grad_(True)
        row_losses(model, batch).sum().backward()
        for p in weights:
            p.grad = None

    def frozen(batch) -> None:
        for p in model.parameters():
            p.requires_grad_(False)
        handle = model.get_input_embeddings().register_forward_hook(lambda m, a, out: out.requires_grad_())
        row_losses(model, batch).sum().backward()
        handle.remove()

    def projected(batch) -> None:
        list(per_sample(model, [batch], row_losses, sites=sites, projection=Projection(options.size)))

    model.eval()
    projected(batches[0])
    for batch in batches:
        for name, work in (("full", full), ("frozen", frozen), ("projected", projected)):
            started = time.perf_counter()
            work(batch)
            found[name] += time.perf_counter() - started
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return found | {"tokens": tokens, "sites": len(sites)}


def adapter(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of training's passes of an adapter in batches, and of its gradients one row at a time."""
    reader, examples = batches_of(options, options.rows)
    batches, model = list(reader.batches(examples)[0]), reader.loaded.model
    lt.attach(model, lt.LoRA(rank=8))
    found = {"lora_batched": 0.0, "lora_by_row": 0.0}
    for batch in batches:
        started = time.perf_counter()
        row_losses(model, batch).sum().backward()
        model.zero_grad()
        middle = time.perf_counter()
        list(per_sample(model, [batch], row_losses, projection=Projection(options.size)))
        found["lora_batched"] += middle - started
        found["lora_by_row"] += time.perf_counter() - middle
    return found


def memory(options: argparse.Namespace) -> dict[str, float]:
    """MB over the loaded model, of a few rows and of many."""
    reader, examples = batches_of(options, options.memory_rows)
    reader.batches(examples.keep(examples.rows[:1]))
    model = reader.loaded.model
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0)  # in memory, and not in a file that is mapped
    before = peak()
    few = reader.gradients(examples.keep(examples.rows[: options.batch * 2]), options.size, 0)
    first, started = peak() - before, time.perf_counter()
    many = reader.gradients(examples, options.size, 0)
    seconds = time.perf_counter() - started
    return {"mb_few": first, "mb_many": peak() - before, "rows_few": len(few), "rows_many": len(many),
            "result_mb": many.nbytes / 1e6, "seconds_many": seconds}  # fmt: skip


PARTS = {"time": timed, "adapter": adapter, "memory": memory}


KEY = ("model", "data", "only", "batch", "rows", "memory_rows", "size")
"""What a run is known by."""


def kept(runs: Sequence[dict], found: dict) -> list[dict]:
    """The runs with this one, which takes the place of an earlier one like it."""
    return [run for run in runs if any(known(run, name) != known(found, name) for name in KEY)] + [found]


def known(run: dict, name: str) -> Any:
    """A setting of a run that says something of its figures: older runs tell the rows of the memory as measured."""
    if name == "memory_rows":
        return run.get(name, run.get("rows_many")) if "memory" in run["only"] else None
    return run[name]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="gym:chain_sum")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--memory-rows", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=results_of("per_sample"))
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["per_sample"]:
        words = words[1:]
    found = {}
    for part in options.only:  # each in a process of its own, whose peak is its own
        command = [sys.executable, "-m", "bench", "per_sample", *words, "--part", part]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found |= json.loads(out.splitlines()[-1])
    if "full" in found:
        found |= {"over_full": found["projected"] / found["full"], "over_frozen": found["projected"] / found["frozen"]}
    found |= {"lora_ratio": found["lora_by_row"] / found["lora_batched"]} if "lora_by_row" in found else {}
    found |= {"machine": about(), **{name: getattr(options, name) for name in KEY}}
    for name, value in found.items():
        print(f"{name:14} {value:.3f}" if isinstance(value, float) else f"{name:14} {value}")
    runs = json.loads(options.out.read_text(encoding="utf-8"))["runs"] if options.out.exists() else []
    options.out.write_text(json.dumps({"runs": kept(runs, found)}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
