"""The loss of a large vocabulary: transformers' own against chunks, in memory and in time.

Each memory figure is the growth of a fresh process's resident peak over one step (forward and backward) after a warm-up
on two tokens; "body" is the same step without a head, so what a loss costs is its growth less the body's. Times are
medians of rounds in which both take turns. The model is one block of a Llama of width 768 with a LoRA.

    python -m bench cross_entropy [--rounds 5] [--out bench/results/cross_entropy.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench._registry import ROOT, results_of
from transformers import LlamaConfig, LlamaForCausalLM

import luthier as lt
from luthier.methods.objectives._cross_entropy import causal_loss

WIDTH, TOKENS = 768, 1024
VOCABULARIES = (8192, 49152, 128256)
DTYPES = ("float32", "bfloat16")
LOSSES = {
    "body": lambda model, batch: model.model(batch["input_ids"])[0].float().sum(),
    "transformers": lambda model, batch: model(**batch).loss,
    "chunks": causal_loss,
}


def made(vocabulary: int, dtype: str):
    """An adapted model of one block."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=2048, num_hidden_layers=1, num_attention_heads=12,
        num_key_value_heads=12,
    )  # fmt: skip
    return lt.attach(LlamaForCausalLM(config).to(getattr(torch, dtype)), lt.LoRA(rank=8)).train()


def batch_of(tokens: int, vocabulary: int, prompt: float) -> dict[str, torch.Tensor]:
    """Rows of 256 tokens, of which the first share is no part of the loss."""
    ids = torch.randint(0, vocabulary, (max(1, tokens // 256), min(tokens, 256)))
    labels = ids.clone()
    labels[:, : int(prompt * ids.shape[1])] = -100
    return {"input_ids": ids, "labels": labels}


def resident(key: str) -> float:
    """MiB of this process: VmRSS now, or VmHWM, its peak."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def growth(loss: str, vocabulary: int, dtype: str, prompt: float) -> float:
    """MiB by which a step's peak rises over what the loaded model takes; for a process of its own."""
    model = made(vocabulary, dtype)
    LOSSES[loss](model, batch_of(2, vocabulary, 0)).backward()
    batch = batch_of(TOKENS, vocabulary, prompt)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    LOSSES[loss](model, batch).backward()
    return resident("VmHWM") - before


def seconds(vocabulary: int, dtype: str, prompt: float, rounds: int) -> dict[str, float]:
    """Median seconds of a step with each loss."""
    model, batch = made(vocabulary, dtype), batch_of(TOKENS, vocabulary, prompt)
    found: dict[str, list[float]] = {"transformers": [], "chunks": []}
    for turn in range(rounds + 1):
        for name, times in found.items():
            started = time.perf_counter()
            LOSSES[name](model, batch).backward()
            if turn:
                times.append(time.perf_counter() - started)
    return {name: round(statistics.median(times), 4) for name, times in found.items()}


def measured(vocabulary: int, dtype: str, prompt: float, rounds: int) -> dict[str, object]:
    """One line of the result."""
    words = [str(vocabulary), dtype, str(prompt)]
    grown = {}
    for name in LOSSES:
        own = [sys.executable, "-m", "bench", "cross_entropy", "--one", name, *words]
        done = subprocess.run(own, capture_output=True, check=True, cwd=ROOT.parent)
        grown[name] = float(done.stdout)
    extra = {name: round(grown[name] - grown["body"], 1) for name in ("transformers", "chunks")}
    times = seconds(vocabulary, dtype, prompt, rounds)
    return {
        "vocabulary": vocabulary, "tokens": TOKENS, "dtype": dtype, "prompt": prompt,
        "extra_MiB": extra, "memory_ratio": round(extra["chunks"] / extra["transformers"], 3),
        "seconds": times, "time_ratio": round(times["chunks"] / times["transformers"], 3),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a line each, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results_of("cross_entropy"))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        loss, vocabulary, dtype, prompt = options.one
        print(growth(loss, int(vocabulary), dtype, float(prompt)))
        return
    lines = []
    for dtype in DTYPES:
        for vocabulary in VOCABULARIES:
            for prompt in (0.0, 0.5):
                lines.append(measured(vocabulary, dtype, prompt, options.rounds))
                print(json.dumps(lines[-1]), flush=True)
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    result = {"machine": machine, "torch": torch.__version__, "width": WIDTH, "losses": lines}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
