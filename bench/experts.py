"""Mixtures of experts beside LoRA of the same active rank: a training step, a decoded token; grouped products alone.

Eight experts of rank 8, top 2, at the feed-forward layers of SmolLM2-135M (`--model`), float32. LoRA has rank 16, what
a token of the sparse ones meets. All contestants take turns within each round; a ratio is to LoRA of the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import luthier as lt
from luthier.kernels._grouped import Sent, padded

OUT = Path(__file__).parent / "results" / "experts.json"
FFN = "gate_proj, up_proj, down_proj"
EXPERTS = tuple("abcdefgh")
CONTESTANTS: dict[str, tuple[lt.Form, str]] = {
    "lora": (lt.LoRA(rank=16), FFN),
    "meteora": (lt.MeteoRA(experts=EXPERTS, rank=8), FFN),
    "loramoe": (lt.LoRAMoE(experts=8, rank=8), FFN),
    "mixlora": (lt.MixLoRA(experts=8, rank=8), "output(mlp)"),
}


def seconds(action: Callable[[], object]) -> float:
    """Returns how long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def products(rounds: int) -> list[dict]:
    """Times one product with gradients: a loop over experts, the padded product and the grouped one."""
    rows = []
    for experts, d_in, d_out, tokens in (
        (8, 576, 8, 1024),
        (8, 8, 1536, 1024),
        (64, 576, 8, 1024),
        (64, 8, 1536, 1024),
    ):
        sent = Sent.by(torch.stack([torch.randperm(experts)[:2] for _ in range(tokens // 2)]), experts)
        x = torch.randn(tokens, d_in, requires_grad=True)
        w = torch.randn(experts, d_in, d_out, requires_grad=True)
        ways = {
            "loop": lambda x=x, w=w, s=sent: loop(x, w, s),
            "padded": lambda x=x, w=w, s=sent: padded(x, w, s.expert, s.counts()),
            "grouped": lambda x=x, w=w, s=sent: s.times(x, w),
        }  # fmt: skip
        best = {name: min(seconds(lambda way=way: way().square().sum().backward()) for _ in range(rounds))
                for name, way in ways.items()}  # fmt: skip
        found = {name: round(1e3 * value, 2) for name, value in best.items()}
        rows.append({"experts": experts, "d_in": d_in, "d_out": d_out, "tokens": tokens, "ms": found})
        print(rows[-1], flush=True)
    return rows


def loop(x: torch.Tensor, w: torch.Tensor, sent: Sent) -> torch.Tensor:
    """The product expert by expert."""
    parts = x.split(sent.counts().tolist())
    return torch.cat([part @ matrix for part, matrix in zip(parts, w, strict=True)])


def trained(model, ids: torch.Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()
    for parameter in lt.trainable(model).values():
        parameter.grad = None


def decoded(model, ids: torch.Tensor, tokens: int) -> None:
    with torch.inference_mode():
        model.generate(input_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, default=OUT)
    told = parser.parse_args(arguments)
    torch.manual_seed(0)
    found = {"products": products(told.rounds)}
    model = lt.model(told.model).model
    ids = torch.randint(5, 1000, (4, 128))
    for name, (form, where) in CONTESTANTS.items():
        lt.attach(model, form, where, name)
        for key, tensor in lt.trainable(model).items():
            if key.startswith(f"{name}.") and ".B" in key:
                tensor.data.normal_(0, 0.01)
    times: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in CONTESTANTS} for kind in ("step", "token")}
    for _ in range(told.rounds):
        for name in CONTESTANTS:
            lt.use(model, name)
            model.train()
            times["step"][name].append(seconds(lambda: trained(model, ids)))
            model.eval()
            decoded(model, ids[:1, :8], 2)
            times["token"][name].append(seconds(lambda: decoded(model, ids[:1, :8], told.tokens)) / told.tokens)
    for kind, each in times.items():
        rows = {}
        for name, values in each.items():
            ratios = [a / b for a, b in zip(values, each["lora"], strict=True)]
            rows[name] = {
                "ms": round(1e3 * statistics.median(values), 1),
                "times lora": round(statistics.median(ratios), 2),
            }
        found[kind] = rows
        print(kind, rows, flush=True)
    told.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
