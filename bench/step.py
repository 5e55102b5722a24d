"""A training step of each form over the floor (the frozen base), and of peft's where it has one, in one run.

The model is a Llama of 97.5M parameters (12 layers, hidden 768), batch 4 x 256, random weights: only time counts.
Forms take turns within each round, so that a drift of the machine's speed falls on all of them; medians of the rounds.

    python bench/step.py [--rounds 7] [--dtype float32] [--out bench/results/step.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import luthier as lt

QKVUD = "q_proj, k_proj, v_proj, up_proj, down_proj"
OURS = {
    "lora r8 all-linear": (lt.LoRA(rank=8), "all-linear"),
    "lora r8, dropout .05": (lt.LoRA(rank=8, dropout=0.05), "all-linear"),
    "wegeft r64 by type, q k v up down": (lt.WeGeFT(rank=64, alpha=128.0, share="type"), QKVUD),
    "dora r8 all-linear": (lt.DoRA(rank=8), "all-linear"),
    "loreft r8 f7+l7 all layers": (lt.LoReFT(rank=8, positions="f7+l7"), "stream"),
    "ia3 all-linear": (lt.IA3(), "all-linear"),
    "bottleneck 32 each block": (lt.Bottleneck(dim=32), "stream"),
    "prefix 16": (lt.Prefix(length=16), "attention"),
}
PEFT = {"peft lora r8": {}, "peft lora r8, dropout .05": {"lora_dropout": 0.05}, "peft dora r8": {"use_dora": True}}


def base(dtype: torch.dtype):
    """The frozen model, in training mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).train().requires_grad_(False)


def floor(dtype: torch.dtype):
    """The base, with gradients through all its activations and into nothing."""
    model = base(dtype)
    model.model.embed_tokens.register_forward_hook(lambda module, args, y: y.requires_grad_())
    return model


def peft_model(dtype: torch.dtype, settings: dict):
    """peft's LoRA on the same layers."""
    import peft

    return peft.get_peft_model(
        base(dtype), peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **settings)
    )


def builders(dtype: torch.dtype) -> dict[str, Callable]:
    """What is timed, by name; the floor first."""
    found: dict[str, Callable] = {"floor": lambda: floor(dtype)}
    found |= {k: lambda f=f, w=w: lt.attach(base(dtype), f, where=w) for k, (f, w) in OURS.items()}
    return found | {k: lambda s=s: peft_model(dtype, s) for k, s in PEFT.items()}


def step(model, ids: torch.Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    started = time.perf_counter()
    labels = ids.clone()
    labels[:, :128] = -100
    model(input_ids=ids, labels=labels).loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return time.perf_counter() - started


def main() -> None:
    """Times, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    made = builders(getattr(torch, options.dtype))
    models = {name: build() for name, build in made.items()}
    ids = torch.randint(0, 8192, (4, 256))
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(options.rounds + 1):
        for name, model in models.items():
            seconds = step(model, ids)
            if turn:  # the first round warms up
                times[name].append(seconds)
    rows = {}
    for name, found in times.items():
        ratios = [a / b for a, b in zip(found, times["floor"], strict=True)]
        rows[name] = {
            "seconds": statistics.median(found), "over_floor": statistics.median(ratios),
            "lowest": min(ratios), "highest": max(ratios),
        }  # fmt: skip
    table = Table("form", "ms a step", "over the floor", "spread", title=f"{options.dtype}, {options.rounds} rounds")
    for name, row in rows.items():
        spread = f"{row['lowest']:.2f} to {row['highest']:.2f}"
        table.add_row(name, f"{1000 * row['seconds']:.0f}", f"{row['over_floor']:.2f}", spread)
    Console().print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        found = {"machine": machine, "torch": torch.__version__, "dtype": options.dtype, "rounds": options.rounds}
        options.out.write_text(json.dumps(found | {"steps": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
