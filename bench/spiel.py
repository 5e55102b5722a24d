"""SpIEL's step and memory against LoRA's, with as many trained numbers.

Both adapt all linear layers of the blocks and take turns in each round, on one batch of random tokens; a step is a
whole one, AdamW's included. SpIEL's usual steps are told apart from those that watch whole gradients and exchange
entries. Memory is the peak of what a forward and backward pass allocates.

    python -m bench spiel [--model smollm2-135m] [--rank 8] [--rounds 8] [--rows 8] [--tokens 64]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of

import luthier as lt
from luthier import models
from luthier.comparing.measures.costs import Allocated
from luthier.core.adapters.optimiser import optimiser
from luthier.methods.updates.spiel import SpIEL

EVERY, WATCHED = 4, 1
"""An exchange every four steps, after one that watches: more often than in earnest, so that few rounds show all."""


def contestant(
    name: str, form: lt.Form, update: lt.Update, batch: dict, steps: int
) -> tuple[Any, Callable[[], None], Any]:
    """(model, its forward and backward pass, its optimiser)."""
    torch.manual_seed(0)
    model = models.load(name).model.train()
    lt.attach(model, form, "all-linear")
    optimizer = optimiser(model, update, lr=1e-4, steps=steps)

    def backward() -> None:
        logits = model(input_ids=batch["input_ids"], logits_to_keep=1).logits
        torch.nn.functional.cross_entropy(logits[:, -1], batch["labels"]).backward()

    return model, backward, optimizer


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=results_of("spiel"))
    given = parser.parse_args(arguments)
    draw = torch.Generator().manual_seed(1)
    batch = {
        "input_ids": torch.randint(5, 1000, (given.rows, given.tokens), generator=draw),
        "labels": torch.randint(5, 1000, (given.rows,), generator=draw),
    }
    steps = given.rounds + 2
    lora = contestant(given.model, lt.LoRA(rank=given.rank), lt.AdamW(), batch, steps)
    count = lt.trainable(lora[0], count=True)
    sites = lt.select(models.load(given.model).model, "all-linear")
    density = count / sum(site.entries for site in sites)
    update = SpIEL(every=EVERY, accumulate=WATCHED)
    spiel = contestant(given.model, lt.Sparse(density=density), update, batch, steps)
    times: dict[str, list[float]] = {"lora": [], "spiel": []}
    for turn in range(given.rounds + 1):
        for name, (_, backward, optimizer) in (("lora", lora), ("spiel", spiel)):
            begun = time.perf_counter()
            backward()
            optimizer.step()
            optimizer.zero_grad()
            if turn:
                times[name].append(time.perf_counter() - begun)
    ratios = [b / a for a, b in zip(times["lora"], times["spiel"], strict=True)]
    watching = [step for step in range(1, steps) if (step - WATCHED) % EVERY >= EVERY - WATCHED]
    usual = [ratio for step, ratio in enumerate(ratios, 1) if step not in watching]
    peaks = {}
    for name, (model, backward, _) in (("lora", lora), ("spiel", spiel)):
        with Allocated() as seen:
            backward()
        model.zero_grad(set_to_none=True)
        peaks[name] = seen.peak
    result = {
        "model": given.model,
        "numbers": {"lora": count, "spiel": lt.trainable(spiel[0], count=True)},
        "seconds": {name: round(statistics.median(each), 4) for name, each in times.items()},
        "usual steps over lora's": {"median": round(statistics.median(usual), 3), "all": [round(r, 3) for r in usual]},
        "steps that watch and exchange over lora's": [round(r, 3) for s, r in enumerate(ratios, 1) if s in watching],
        "peak bytes": peaks,
        "peak over lora's": round(peaks["spiel"] / peaks["lora"], 3),
        "machine": {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()},
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
