"""Generation: tokens a second of the engine's batches beside transformers' `generate`, on the same prompts.

SmolLM2 with a LoRA of rank 8 answers GSM8K questions greedily, in float32. Three ways alternate, round by round: rows
that join and leave a batch, as `generate` and `evaluate` decode; batches of rows of similar length by transformers'
`generate`, each until its longest answer ends, as they decoded before; and the same in the order of the data, as
lm-eval and most scripts do. A token of an answer counts, padding does not.

    python -m bench generation --data FOLDER [--rows 200] [--batch 16] [--tokens 128] [--rounds 2]

FOLDER holds gsm8k/test.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from bench._registry import results_of

import luthier as lt
from luthier import models
from luthier.core.adapters.control import trainable
from luthier.engine.answers import _by_batches, answers
from luthier.engine.settings import Sampling
from luthier.evaluating.generate import tokenised

MODEL = "smollm2-135m"
Way = Callable[[], list[str]]


def ways(given: argparse.Namespace) -> tuple[dict[str, Way], Any]:
    """Each way, and the tokenizer that counts what it said."""
    loaded = models.load(MODEL)
    model, words = loaded.model.eval(), loaded.processor
    lt.attach(model, lt.LoRA(rank=8), "all-linear")
    draw = torch.Generator().manual_seed(0)
    for parameter in trainable(model).values():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=draw)
    lines = (given.data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[: given.rows]
    prompts = tokenised(model, words, [json.loads(line)["question"] for line in lines])
    sampling, size = Sampling(given.tokens), given.batch

    def in_order() -> list[str]:
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        return [text for part in parts for text in by_batches(part)]

    def by_batches(part: list[list[int]]) -> list[str]:
        return [text for text, _ in _by_batches(model, words, part, sampling, size, int, None)]

    return {
        "engine": lambda: answers(model, words, prompts, sampling, size),
        "transformers, by length": lambda: by_batches(prompts),
        "transformers, in order": in_order,
    }, words


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    for name, default in (("rows", 200), ("batch", 16), ("tokens", 128), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=results_of("generation"))
    given = parser.parse_args(words)
    found, tokenizer = ways(given)
    rates: dict[str, list[float]] = {name: [] for name in found}
    said: dict[str, list[str]] = {}
    for number in range(given.rounds):
        for name, way in found.items():
            began = time.perf_counter()
            said[name] = way()
            seconds = time.perf_counter() - began
            tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in said[name])
            rates[name].append(tokens / seconds)
            print(f"round {number}: {name}: {tokens} tokens, {rates[name][-1]:.1f} a second", flush=True)
    alike = sum(a == b for a, b in zip(said["engine"], said["transformers, by length"], strict=True)) / given.rows
    over = {
        name: statistics.median(own / other for own, other in zip(rates["engine"], each, strict=True))
        for name, each in rates.items()
    }
    settings = {key: getattr(given, key) for key in ("rows", "batch", "tokens", "rounds")}
    threads = {"threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__}
    result = {**settings, **threads, "tokens_per_second": rates, "engine_over": over, "same_answers": alike}
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"the engine over the others: {over}; {alike:.0%} of the answers are the same")


if __name__ == "__main__":
    main()
