"""Steps of several adapters that are trained together, against the same steps one after another.

Each adapter has one short row a step (40 to 80 tokens, all but a third in the loss), LoRA on every linear layer, and an
AdamW of its own. Time: both ways take turns on one model in one process, and a round's ratio is that of its two times;
told are the wall's and the processor's (the steadier figure on a machine that is shared). Memory: the highest resident
set of a process that trains all of them together, over that of one that trains a single adapter. Sampling: the tokens a
second of an engine that answers as many rows as there are adapters while it trains them, over those where it makes the
same passes first and the same answers then.

python -m bench together [--model smollm2-135m] [--adapters 8] [--rank 8] [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from bench.speed.machine import about

import luthier as lt
from luthier import models
from luthier.core.adapters.control import tensors
from luthier.engine.engine import Engine
from luthier.engine.request import Chunk, Request
from luthier.training.together import Pool, Row, Work

RATE = 1e-4
PASSES, ANSWER = 2, 32
"""Passes of training, and tokens of each answer, in a round of sampling beside training."""


def rows(count: int, words: int, seed: int) -> list[Row]:
    """A row for each adapter: random tokens, of which the last two thirds are learned."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        tokens = [draw.randrange(words // 8, words) for _ in range(draw.randint(40, 80))]
        ahead = len(tokens) // 3
        made.append(Row(tokens, [*[-100] * ahead, *tokens[ahead + 1 :], -100], prompt=ahead + 1))
    return made


def mean(log_probs: list[torch.Tensor]) -> torch.Tensor:
    """The mean over the targets of one row."""
    return -log_probs[0].sum() / log_probs[0].ne(0).sum()


class Contest:
    """Two ways to make a step of every adapter of a model."""

    def __init__(self, model: Any, adapters: int, rank: int) -> None:
        self.model, self.pool = model, Pool(model)
        self.names = [f"a{number}" for number in range(adapters)]
        for seed, name in enumerate(self.names):
            self.pool.add(name, lt.LoRA(rank=rank), "all-linear", seed=seed)
        self.own = {
            name: torch.optim.AdamW([p for p in tensors(model, name).values() if p.requires_grad], lr=RATE)
            for name in self.names
        }

    def works(self, given: Sequence[Row]) -> list[Work]:
        """A row for each adapter."""
        return [Work(name, [row], mean) for name, row in zip(self.names, given, strict=True)]

    def together(self, given: Sequence[Row]) -> None:
        """One pass for all, then a step of each."""
        self.pool.forward_backward(self.works(given))
        for name in self.names:
            self.pool.step(name, RATE)

    def apart(self, given: Sequence[Row]) -> None:
        """A pass and a step of each, as a training loop of its own makes them."""
        for name, row in zip(self.names, given, strict=True):
            self.loss(name, row).backward()
            self.own[name].step()
            self.own[name].zero_grad()

    def loss(self, name: str, row: Row) -> torch.Tensor:
        """The loss of one adapter by itself."""
        lt.use(self.model, name)
        ids = torch.tensor([list(row.tokens)])
        labels = ids.clone()
        labels[:, : row.end()] = -100
        return lt.SFT().loss(self.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})

    def losses(self, given: Sequence[Row]) -> tuple[list[float], list[float]]:
        """The losses of both ways, before any step."""
        outcomes = self.pool.forward_backward(self.works(given), backward=False)
        with torch.no_grad():
            alone = [float(self.loss(name, row)) for name, row in zip(self.names, given, strict=True)]
        return [out.loss for out in outcomes], alone


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, seconds of the processor)."""
    began = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def contest(arguments: argparse.Namespace, adapters: int) -> Contest:
    torch.set_num_threads(arguments.threads)
    loaded = models.load(arguments.model, task="causal-lm", dtype="float32")
    loaded.model.config.use_cache = False
    return Contest(loaded.model, adapters, arguments.rank)


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times of the rounds, and by how much the first losses of the two ways differ."""
    held = contest(arguments, arguments.adapters)
    words = held.model.config.vocab_size
    differ = max(abs(a - b) for a, b in zip(*held.losses(rows(arguments.adapters, words, 0)), strict=True))
    found: dict[str, list[tuple[float, float]]] = {"together": [], "apart": []}
    ways = {"together": held.together, "apart": held.apart}
    for number in range(arguments.rounds):
        given = rows(arguments.adapters, words, number + 1)
        for way in ("together", "apart") if number % 2 else ("apart", "together"):
            found[way].append(timed(lambda run=ways[way], given=given: run(given)))
    ratios = [
        [one[kind] / two[kind] for one, two in zip(found["together"], found["apart"], strict=True)] for kind in (0, 1)
    ]
    return {
        "seconds": {way: statistics.median(each[0] for each in times) for way, times in found.items()},
        "cpu_seconds": {way: statistics.median(each[1] for each in times) for way, times in found.items()},
        "ratio": statistics.median(ratios[0]),
        "cpu_ratio": statistics.median(ratios[1]),
        "losses_differ": differ,
    }


class Busy:
    """An engine whose model is trained between its steps, as the server of the training API has it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.set_num_threads(arguments.threads)
        loaded = models.load(arguments.model, task="causal-lm", dtype="float32")
        self.engine = Engine(loaded.model, loaded.processor, rows=arguments.adapters)
        self.contest = Contest(loaded.model, arguments.adapters, arguments.rank)
        self.given = rows(arguments.adapters, loaded.model.config.vocab_size, 0)
        with tempfile.TemporaryDirectory() as folder:  # what answers is a saved adapter, as it is in the server
            for name in self.contest.names:
                self.engine.load(f"saved-{name}", self.contest.pool.save(name, Path(folder, name)))
        self.engine.start()

    def train(self) -> None:
        """A few steps of all adapters."""
        for _ in range(PASSES):
            self.engine.between(lambda: self.contest.together(self.given))

    def sample(self) -> None:
        """An answer for each row, by its adapter as it was saved."""
        left, done = threading.Semaphore(0), []

        def deliver(chunk: Chunk) -> None:
            if chunk.finish:
                done.append(chunk)
                left.release()

        asked = [Request(tuple(row.tokens), f"saved-{name}", max_tokens=ANSWER, own_ends=False)
                 for name, row in zip(self.contest.names, self.given, strict=True)]  # fmt: skip
        self.engine.submit_all(asked, [deliver] * len(asked))
        for _ in asked:
            left.acquire()
        assert all(chunk.finish == "length" for chunk in done), done

    def turns(self) -> None:
        """One after the other."""
        self.train()
        self.sample()

    def beside(self) -> None:
        """Both at once; what the training raises is raised here."""
        with ThreadPoolExecutor(1) as aside:
            training = aside.submit(self.train)
            self.sample()
            training.result()


def sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of both ways, and the ratio round by round."""
    held, tokens = Busy(arguments), arguments.adapters * ANSWER
    held.turns()
    found: dict[str, list[float]] = {"turns": [], "beside": []}
    ways = {"turns": held.turns, "beside": held.beside}
    for number in range(arguments.rounds):
        for way in ("turns", "beside") if number % 2 else ("beside", "turns"):
            found[way].append(tokens / timed(ways[way])[0])
    held.engine.close()
    ratios = [two / one for one, two in zip(found["turns"], found["beside"], strict=True)]
    return {way: statistics.median(rates) for way, rates in found.items()} | {"ratio": statistics.median(ratios)}


def highest() -> float:
    """MiB of this process at its peak. (What `getrusage` tells is at least what the parent had before it.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def peak(arguments: argparse.Namespace, adapters: int) -> float:
    """MiB of a process that makes two steps of so many adapters together."""
    words = [sys.executable, "-m", "bench", "together", "--only-memory", str(adapters), "--model", arguments.model]
    words += ["--rank", str(arguments.rank), "--threads", str(arguments.threads)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def main(words: Sequence[str]) -> None:
    """Writes results/together.json, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    for name, value in (("adapters", 8), ("rank", 8), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--no-memory", action="store_true", help="leave the processes for memory out")
    parser.add_argument("--no-sampling", action="store_true", help="leave sampling beside training out")
    parser.add_argument("--only-memory", type=int, default=0, help="adapters to train, for a process of its own")
    arguments = parser.parse_args(words)
    if arguments.only_memory:
        held = contest(arguments, arguments.only_memory)
        for seed in range(2):
            held.together(rows(arguments.only_memory, held.model.config.vocab_size, seed))
        print(highest())
        return
    found = {**vars(arguments), **speed(arguments), "machine": about()}
    if not arguments.no_memory:
        found["peak_mib"] = {"one": peak(arguments, 1), "together": peak(arguments, arguments.adapters)}
        found["memory_ratio"] = found["peak_mib"]["together"] / found["peak_mib"]["one"]
    if not arguments.no_sampling:
        found["sampling"] = sampling(arguments)
    results_of("together").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
