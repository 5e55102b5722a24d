"""Throughput of the serving engine: rows with different adapters, beside the same rows on the base and in peft.

Eight LoRAs (rank 8, all linear layers) on real weights. Contestants have a process each and take turns within a round;
a ratio is to the contestant of the same round. The prompts count, so that no answer ends early, which is checked.
`python -m bench serving [--dtype float32] [--model NAME] [--rounds N]` writes `results/serving-<machine>.json`; what
was measured before in the other dtype stays.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench._registry import results_of
from bench.speed.machine import about, slug

import luthier as lt
from luthier.engine.engine import Engine
from luthier.engine.request import Chunk, Request
from luthier.serving.http.threads import run_in_thread

ADAPTERS = [f"a{index}" for index in range(8)]
PROMPT, NEW = 32, 64
"""Tokens of a prompt and of its answer."""
ROWS = (8, 32)
LOADED = (1, 8, 32)
RESULTS = results_of(f"serving-{slug()}")
Work = Callable[[], int]
"""Answers a batch; returns how many tokens that made."""


def base(name: str, dtype: str) -> Any:
    """The model and its tokenizer."""
    return lt.model(name, task="causal-lm", dtype=dtype)


def adapter(name: str, dtype: str, folder: Path, seed: int) -> Path:
    """A LoRA away from its start, saved."""
    model = lt.attach(base(name, dtype).model, lt.LoRA(rank=8))
    draw = torch.Generator().manual_seed(seed)
    for parameter in lt.trainable(model).values():
        parameter.data += 1e-3 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    return lt.save(model, folder)


def prompts(tokenizer: Any, rows: int) -> list[tuple[int, ...]]:
    """As many tokens for every row: numbers one after the other, from another one on for each."""
    texts = [", ".join(str(number) for number in range(row, row + PROMPT)) for row in range(rows)]
    return [tuple(tokenizer(text)["input_ids"][:PROMPT]) for text in texts]


def through_engine(engine: Engine, ids: list[tuple[int, ...]], names: list[str | None]) -> Work:
    """The whole batch through the engine, greedily."""
    requests = [Request(prompt, name, NEW, temperature=0) for prompt, name in zip(ids, names, strict=True)]

    def work() -> int:
        done = threading.Semaphore(0)
        counts: list[int] = []

        def deliver(chunk: Chunk) -> None:
            if chunk.finish is not None:
                counts.append(chunk.generated)
                done.release()

        for request in requests:
            engine.submit(request, deliver)
        for _ in requests:
            done.acquire()
        if counts != [NEW] * len(requests):
            raise SystemExit(f"answers have {counts} tokens; expected {NEW} each.")
        return sum(counts)

    return work


def through_peft(model: Any, ids: list[tuple[int, ...]], names: list[str]) -> Work:
    """The same batch through peft's `adapter_names`."""
    entering = torch.tensor(ids)
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def work() -> int:
        with torch.inference_mode():
            mask = torch.ones_like(entering)
            out = model.generate(input_ids=entering, attention_mask=mask, adapter_names=names, **settings)
        return out[:, PROMPT:].numel()

    return work


def peft_model(name: str, dtype: str) -> Any:
    """peft's base with as many LoRAs of the same size, their B away from zero."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base(name, dtype).model, config, adapter_name=ADAPTERS[0])
    for each in ADAPTERS[1:]:
        model.add_adapter(each, config)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(0, 1e-3)
    return model.eval()


def contestant(kind: str, name: str, dtype: str, folders: dict[str, Path], pipe: Connection) -> None:
    """A process of its own: builds one contestant, then answers each number of rows with tokens a second."""
    if kind == "peft":
        model, tokenizer = peft_model(name, dtype), base(name, dtype).processor
    else:
        model, tokenizer = run_in_thread(lambda: served(name, dtype, folders if kind == "mixed" else {}))
        model.start()
    works: dict[int, Work] = {}
    while rows := pipe.recv():
        if rows not in works:
            ids = prompts(tokenizer, rows)
            names = [ADAPTERS[row % len(ADAPTERS)] for row in range(rows)]
            own: list[Any] = names if kind == "mixed" else [None] * rows
            works[rows] = through_peft(model, ids, names) if kind == "peft" else through_engine(model, ids, own)
            works[rows]()  # warms up
        started = time.perf_counter()
        tokens = works[rows]()
        pipe.send(tokens / (time.perf_counter() - started))


def served(name: str, dtype: str, folders: dict[str, Path]) -> tuple[Engine, Any]:
    """An engine as `luthier serve` makes it, and its tokenizer."""
    loaded = base(name, dtype)
    return Engine(loaded.model, loaded.processor, adapters=folders), loaded.processor


def throughput(name: str, dtype: str, folders: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Tokens a second of each contestant by the number of rows, and ratios round by round.

    Each has a process to itself, as a server has, and waits while another one's turn lasts.
    """
    spawn, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for kind in ("base", "mixed", "peft"):
        pipes[kind], theirs = spawn.Pipe()
        processes.append(spawn.Process(target=contestant, args=(kind, name, dtype, folders, theirs), daemon=True))
        processes[-1].start()
    found = {}
    for rows in ROWS:
        rates = {kind: [] for kind in pipes}
        for _ in range(rounds):
            for kind, pipe in pipes.items():
                pipe.send(rows)
                rates[kind].append(pipe.recv())
        ratios = {
            "mixed over base": [m / b for m, b in zip(rates["mixed"], rates["base"], strict=True)],
            "mixed over peft": [m / p for m, p in zip(rates["mixed"], rates["peft"], strict=True)],
        }
        found[str(rows)] = {key: spread(values) for key, values in (rates | ratios).items()}
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(0)
        process.join()
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def loading(name: str, dtype: str, folder: Path) -> dict[str, float]:
    """{adapters there: milliseconds to load one more}, medians of three around each count, while the engine runs."""
    engine, _ = run_in_thread(lambda: served(name, dtype, {}))
    engine.start()
    took = []
    for index in range(max(LOADED) + 2):
        started = time.perf_counter()
        engine.load(f"b{index}", folder)
        took.append(1e3 * (time.perf_counter() - started))
    engine.close()
    return {str(count): statistics.median(took[max(count - 1, 0) : count + 2]) for count in LOADED}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures everything and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    chosen = parser.parse_args(arguments)
    about_this: dict[str, Any] = {"machine": about(), "model": chosen.model, "prompt": PROMPT, "new": NEW}
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    found = before if {key: before.get(key) for key in about_this} == about_this else about_this
    with TemporaryDirectory() as scratch:
        made = partial(adapter, chosen.model, chosen.dtype)
        folders = {n: run_in_thread(partial(made, Path(scratch) / n, i)) for i, n in enumerate(ADAPTERS)}
        found[chosen.dtype] = throughput(chosen.model, chosen.dtype, folders, chosen.rounds)
        found[chosen.dtype]["loading, ms"] = loading(chosen.model, chosen.dtype, folders[ADAPTERS[0]])
    print(json.dumps(found, indent=1), flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
