"""A calibration pass over the forward passes alone: its time and the memory that it adds.

Each batch goes through an untouched copy of the model right before it is measured, so that a drift of the machine's
speed falls on both. Each set of statistics runs in a process of its own, whose peak memory is read before and after.

    OMP_NUM_THREADS=1 python -m bench calibration --data ROWS.jsonl [--model smollm2-135m] [--rows 256] [--batch 8]

ROWS.jsonl holds question and answer. Writes bench/results/calibration.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from bench._registry import results_of
from rich.console import Console
from rich.table import Table

import luthier as lt
from luthier.core.contracts.statistic import Statistic
from luthier.core.sites.collect import collect
from luthier.methods.statistics.pca import PCA
from luthier.methods.statistics.states import States

CASES: dict[str, list[Statistic]] = {
    "PCA(16)": [PCA(16)],
    "PCA(16), all rows": [PCA(16, tolerance=1.0)],
    "PCA(16), States": [PCA(16), States()],
}


def batches_of(options: argparse.Namespace, tokenizer) -> list[dict[str, torch.Tensor]]:
    """The first rows of the file, padded."""
    lines = options.data.read_text(encoding="utf-8").splitlines()[: options.rows]
    texts = ["{question}\n{answer}".format(**json.loads(line)) for line in lines]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    chunks = [texts[i : i + options.batch] for i in range(0, len(texts), options.batch)]
    return [dict(tokenizer(chunk, return_tensors="pt", padding=True)) for chunk in chunks]


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Floor:
    """The forward passes alone, on a copy of the model, as lean as those of the pass."""

    def __init__(self, model) -> None:
        self.model, self.read = copy.deepcopy(model).eval(), 0
        self.seconds = self.cpu = 0.0

    def stream(self, batches) -> Iterator[dict[str, torch.Tensor]]:
        """The batches, each one timed here before it is handed on."""
        for batch in batches:
            started, started_cpu = time.perf_counter(), time.process_time()
            with torch.no_grad():
                self.model(**batch, use_cache=False, logits_to_keep=1)
            self.seconds += time.perf_counter() - started
            self.cpu += time.process_time() - started_cpu
            self.read += 1
            yield batch


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Time over the floor, and memory added, of one set of statistics."""
    loaded = lt.model(options.model, task="causal-lm")
    batches, floor = batches_of(options, loaded.processor), Floor(loaded.model)
    sites = lt.select(loaded.model, "all-linear")
    longest = max(batches, key=lambda batch: batch["input_ids"].shape[1])
    for model in (floor.model, loaded.model):
        with torch.no_grad():
            model(**longest, use_cache=False, logits_to_keep=1)
    before = peak()
    started, started_cpu = time.perf_counter(), time.process_time()
    found = collect(loaded.model, floor.stream(batches), sites, CASES[name])
    seconds = time.perf_counter() - started - floor.seconds
    cpu = time.process_time() - started_cpu - floor.cpu
    added = sum({t.data_ptr(): t.nbytes for held in found.values() for t in held.values()}.values())
    return {
        "forward_seconds": floor.seconds, "pass_seconds": seconds, "over_forward": seconds / floor.seconds,
        "forward_cpu_seconds": floor.cpu, "pass_cpu_seconds": cpu, "over_forward_cpu": cpu / floor.cpu,
        "peak_added_mb": peak() - before, "result_mb": added / 1e6, "batches_read": floor.read, "sites": len(sites),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=results_of("calibration"))
    options = parser.parse_args(arguments)
    fresh, rows = multiprocessing.get_context("spawn"), {}
    for name in CASES:
        with fresh.Pool(1) as pool:
            rows[name] = pool.apply(measure, (name, options))
    table = Table(
        "statistics", "forward", "pass", "over the forward", "in CPU time", "memory added", title=options.model
    )
    for name, row in rows.items():
        seconds = (f"{row['forward_seconds']:.0f} s", f"{row['pass_seconds']:.0f} s", f"{row['over_forward']:.2f}")
        table.add_row(name, *seconds, f"{row['over_forward_cpu']:.2f}", f"{row['peak_added_mb']:.0f} MB")
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    ground = {"model": options.model, "rows": options.rows, "batch": options.batch, "torch": torch.__version__}
    options.out.write_text(json.dumps({"machine": machine, **ground, "passes": rows}, indent=2) + "\n")
