"""GreenTrainer's step against full fine-tuning's and the frozen base's own forward and backward pass.

Each contestant has a model of its own, a classifier with a new head of 150 labels, and all take turns in each round on
one batch of random tokens. The floor is the frozen base's forward pass and the backward pass to its embeddings, below
which no adapter on all layers can go; the others are whole steps, AdamW's included. Operations are the FLOP model's
and, of the chosen tensors, torch's own count.

    python -m bench green_trainer [--model smollm2-135m] [--rho 0.36] [--rounds 7] [--rows 8] [--tokens 64]
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import luthier as lt
from luthier import models
from luthier.core.adapters.flops import backward_costs
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import training_plan
from luthier.core.contracts.kernel import reference_implementation
from luthier.methods.updates.green_trainer import PROBE, GreenTrainer

LABELS = [str(i) for i in range(150)]
Batch = dict[str, torch.Tensor]


def loaded(name: str) -> Any:
    """A classifier with a new head, the same one each time."""
    torch.manual_seed(0)
    return models.load(name, task="classification", labels=LABELS).model.train()


def batch_of(model: Any, rows: int, tokens: int) -> Batch:
    """Random tokens without padding."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (rows, tokens), generator=draw)
    labels = torch.randint(0, len(LABELS), (rows,), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def floor(model: Any, batch: Batch) -> Callable[[], None]:
    """The frozen base, whose activations get gradients down to the embeddings."""
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())
    return lambda: model(**batch).loss.backward()


def stepper(model: Any, batch: Batch, update: lt.Update, steps: int) -> tuple[Callable[[], None], Any]:
    """Whole steps of full fine-tuning by an update, and the loss that it weighs."""
    lt.attach(model, lt.Full(), "params(*)", check=False)
    optimizer = optimiser(model, update, lr=2e-5, steps=steps, loss=lambda: model(**batch).loss)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, optimizer


def operations(model: Any, batch: Batch) -> dict[str, float]:
    """Operations of a step over those of one that trains all: by the model of costs, and by torch's count."""
    trained = [p for p in model.parameters() if p.requires_grad]
    plan = training_plan(model, 1)
    chosen = [group.name for group in plan.groups if next(iter(group.params.values())).requires_grad]
    costs = backward_costs(lambda: model(**batch).loss, plan.groups)
    with reference_implementation(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)
    return {
        "tensors": len(chosen),
        "numbers": sum(p.numel() for p in trained),
        "model": round(costs.of(chosen) / costs.total, 4),
        "torch": round(counter.get_total_flops() / costs.total, 4),
        "forward": round(costs.forward / costs.total, 4),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rho", type=float, default=0.36)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=results_of("green_trainer"))
    given = parser.parse_args(arguments)
    base = loaded(given.model)
    batch = batch_of(base, given.rows, given.tokens)
    green, whole = loaded(given.model), loaded(given.model)
    steps = given.rounds + PROBE + 2
    chosen, _ = stepper(green, batch, GreenTrainer(rho=given.rho), steps)
    begun = time.perf_counter()
    for _ in range(PROBE):
        chosen()
    probe = time.perf_counter() - begun
    contestants = {"floor": floor(base, batch), "green": chosen, "full": stepper(whole, batch, lt.AdamW(), steps)[0]}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(given.rounds + 1):
        for name, step in contestants.items():
            begun = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - begun)
    ratios = {
        f"green/{name}": [round(a / b, 3) for a, b in zip(times["green"], times[name], strict=True)]
        for name in ("full", "floor")
    }
    result = {
        "model": given.model,
        "rho": given.rho,
        "batch": [given.rows, given.tokens],
        "seconds": {name: round(statistics.median(each), 4) for name, each in times.items()},
        "ratios": {name: {"median": statistics.median(each), "all": sorted(each)} for name, each in ratios.items()},
        "probe_seconds": round(probe, 3),
        "operations": operations(green, batch),
        "machine": {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()},
    }
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.write_text(json.dumps(known | {f"{given.model} {given.rho:g}": result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
