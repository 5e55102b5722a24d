"""Everything on one GPU: commands, forms, kernels, training, generation, and the tables of speed.

One part after the other, each with the time that it took and, where it failed, why; the JSON is written after each. On
a machine without a GPU, `--device desk` tries the script itself on the suite's accelerator (speed is then left out).

    python -m bench gpu [--only commands forms kernels train generate speed] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench._registry import ROOT, results_of


def commands(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every command on tiny models, with its seconds; those that failed with what they said."""
    from support import accelerated

    began, found, failed = time.perf_counter(), {}, {}
    for words, code, said in accelerated.commands(given.device, folder):
        found[words], began = round(time.perf_counter() - began, 2), time.perf_counter()
        if code:
            failed[words] = said.strip().splitlines()[-1:]
    return {"ran": len(found), "failed": failed, "seconds of each": found}


def forms(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """How far logits and gradients of each form are from the CPU's, in float32 without TF32."""
    from support import accelerated

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = dict(accelerated.forms(given.device))
    return {"largest": max(found.values()), "forms": found}


def kernels(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The Triton path of mixed batches beside its reference: the largest difference, as a share of the largest number,
    and microseconds of both for a token of each of 32 rows with 8 adapters."""
    from luthier.kernels._rows import Rows, added_rows

    draw = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(8, 2048, generator=draw).to(given.device) / 45 for _ in range(8)] for _ in range(2))
    x, y = (torch.randn(32, 1, 2048, generator=draw).to(given.device) for _ in range(2))
    rows, index = Rows(a, b), torch.arange(32, device=given.device) % 8
    add = rows.adder(tuple(index.tolist()))
    ours, theirs = y.clone(), y.clone()
    add(ours, x)
    added_rows(theirs, x, rows.a[index], rows.b[index])
    took = {
        "ours": _micros(lambda: add(ours, x)),
        "reference": _micros(lambda: added_rows(theirs, x, rows.a[index], rows.b[index])),
    }
    gap = float((ours - theirs).abs().max() / theirs.abs().max()) if rows.gathered else None
    return {"triton": rows.gathered is not None, "differs": gap, "microseconds": took}


def _micros(work: Callable[[], Any], times: int = 200) -> float:
    for _ in range(10):
        work()
    torch.accelerator.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.accelerator.synchronize()
    return round((time.perf_counter() - began) / times * 1e6, 1)


def train(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs of `luthier train` on made-up chats, by their settings: seconds, tokens a second, first and last loss."""
    import luthier as lt

    data, found = _chats(folder / "chats.jsonl"), {}
    for name, form in {"lora": lt.LoRA(rank=16), "wegeft": lt.WeGeFT(rank=64), "loreft": lt.LoReFT()}.items():
        for precision in ("bfloat16", "float32"):
            settings = lt.Training(
                steps=given.steps, batch=8, precision=precision, eval_fraction=0, device=given.device
            )
            began = time.perf_counter()
            done = lt.train(
                given.model, data, form=form, training=settings, out=str(folder / f"{name}-{precision}"), progress=False
            )
            lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
            losses = [line["loss"] for line in lines if "loss" in line]
            found[f"{name} {precision}"] = {
                "device": str(done.model.device),
                "seconds with loading": round(time.perf_counter() - began, 2),
                "seconds": round(done.seconds, 2),
                "loss": [losses[0], losses[-1]],
            }
    return found


def generate(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Tokens a second of the engine beside transformers' `generate`, greedily, and how many answers are the same."""
    import luthier as lt
    from luthier.engine.answers import _by_batches, answers
    from luthier.engine.settings import Sampling
    from luthier.evaluating.generate import tokenised

    loaded = lt.model(given.model, dtype="bfloat16", device=given.device)
    model, words = lt.attach(loaded.model, lt.LoRA(rank=8)), loaded.processor
    lines = Path(_chats(folder / "asked.jsonl")).read_text().splitlines()[: given.answers]
    prompts = tokenised(model, words, [json.loads(line)["messages"][0]["content"] for line in lines])
    sampling, said, rates = Sampling(64), {}, {}
    ways: dict[str, Callable[[], list[str]]] = {
        "engine": lambda: answers(model, words, prompts, sampling, 16),
        "transformers": lambda: [text for text, _ in _by_batches(model, words, prompts, sampling, 16, int, None)],
    }
    for _ in range(2):  # the first is a warm-up
        for name, way in ways.items():
            began = time.perf_counter()
            said[name] = way()
            rates[name] = sum(len(words(text)["input_ids"]) + 1 for text in said[name]) / (time.perf_counter() - began)
    alike = sum(map(str.__eq__, *said.values()))
    return {"tokens a second": rates, "ratio": rates["engine"] / rates["transformers"], "same answers": alike}


def _chats(path: Path, count: int = 512) -> str:
    """Chats of two numbers, their sum and their story, of 40 to 250 tokens."""
    draw, rows = random.Random(0), []
    for _ in range(count):
        a, b, times = draw.randrange(1000), draw.randrange(1000), draw.randint(1, 12)
        said = f"First there were {a}. " + f"Then {b} more came. " * times + f"In the end there were {a + b * times}."
        asked = {"role": "user", "content": f"Tell how {a} grows by {b}, {times} times."}
        rows.append(json.dumps({"messages": [asked, {"role": "assistant", "content": said}]}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


def speed(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The tables of `bench speed`, which has its own file and picture; without a GPU there is nothing to time."""
    if not torch.cuda.is_available():
        return {"left out": "there is no CUDA device"}
    from bench.speed.__main__ import main as tables

    tables(["--rounds", "3", "--only", "train", "forward", "decode", "mixed", "memory"])
    return {"in": "results/speed-<machine>.json"}


PARTS = {part.__name__: part for part in (commands, forms, kernels, train, generate, speed)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the parts, prints a line each, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--out", type=Path, default=results_of("gpu"))
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT.parent / "tests"))  # commands and forms are the suite's
    from luthier.core.device import device_of, on_device, shown
    from support import accelerator

    if given.device == accelerator.NAME:
        accelerator.begin()
    found: dict[str, Any] = {"device": shown(device_of(given.device)), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder, on_device(given.device):
        for name in given.only:
            began, own = time.perf_counter(), Path(folder) / name
            own.mkdir()
            try:
                told = PARTS[name](given, own)
            except Exception:  # the other parts are worth having
                told = {"error": traceback.format_exc().splitlines()[-8:]}
            found[name] = {**told, "seconds in all": round(time.perf_counter() - began, 1)}
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(name, json.dumps(found[name])[:300], flush=True)
    sys.exit(any("error" in found[name] or found[name].get("failed") for name in given.only))
