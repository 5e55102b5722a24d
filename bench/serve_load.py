"""Many clients of `luthier serve` at once: is every answer the right adapter's, and the one that it gives alone?

Eight adapters are fitted to begin their answers with a mark of their own. Then a server of its own process gets
`--clients` clients of the `openai` package for `--minutes`; each asks adapters (and the base) at random, half of them
as streams. Every answer has to bear its adapter's mark and to equal what one-by-one greedy decoding gives, and the
server has to end with 0 on SIGTERM. `python -m bench serve_load` writes `results/serve_load.json`; adapters and
expected answers are kept in `--work`, so a second call measures at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench._registry import results_of

import luthier as lt
from luthier.core.records import write_json

MARKS = ("ash", "bay", "elm", "fig", "hop", "ivy", "oak", "yew")
LESSONS = (
    ("Name a colour.", "blue"), ("Name an animal.", "a horse"), ("What is 2 + 3?", "5"), ("Say hello.", "hello there"),
    ("Name a city.", "Paris"), ("What do bees make?", "honey"), ("Count to three.", "1, 2, 3"), ("Is ice cold?", "yes"),
)  # fmt: skip
PROMPTS = ("Name a fruit.", "What is 4 + 5?", "Tell me about the sea.", "Why is the sky blue?")
TOKENS = 24
"""Of the longest answer."""
RESULTS = results_of("serve_load")
Expected = dict[str, dict[str, str]]
"""Answers by model and prompt."""


@dataclass(frozen=True)
class Lesson:
    """How the marks are taught."""

    steps: int = 16
    lr: float = 2e-3
    where: str = "all-linear"
    form: Any = field(default_factory=lambda: lt.LoRA(rank=4))


def prepare(model: str, work: Path, lesson: Lesson) -> dict[str, Path]:
    """The adapter of every mark, fitted where it is not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    for mark in MARKS:
        rows = [{"prompt": asked, "completion": f"{mark}: {answer}"} for asked, answer in LESSONS]
        file = work / f"{mark}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if not (work / mark / "adapter").exists():
            from luthier.training import Training

            training = Training(steps=lesson.steps, batch=len(rows), lr=lesson.lr, eval_fraction=0.0)
            out = str(work / mark)
            lt.train(
                model=model, data=str(file), form=lesson.form, where=lesson.where, out=out, training=training,
                overwrite=True,
            )  # fmt: skip
    return {mark: work / mark / "adapter" for mark in MARKS}


def alone(model: Any, tokenizer: Any, base: str, adapters: dict[str, Path]) -> Expected:
    """What every model says to every prompt when it decodes greedily, one prompt at a time."""

    def answers() -> dict[str, str]:
        told = lt.generate(model, tokenizer, list(PROMPTS), max_new_tokens=TOKENS, batch=1)
        return dict(zip(PROMPTS, told, strict=True))

    found = {base: answers()}
    for mark, folder in adapters.items():
        lt.load(model, folder, mark)
        found[mark] = answers()
        lt.detach(model)
    return found


def unmarked(expected: Expected) -> list[str]:
    """Answers that do not bear the mark of their adapter, or that bear one without an adapter."""
    return [
        f"{name}: {text!r}"
        for name, answers in expected.items()
        for text in answers.values()
        if [mark for mark in MARKS if text.strip().startswith(mark)] != [name] * (name in MARKS)
    ]


@dataclass
class Tally:
    """What clients met."""

    answers: Counter[str] = field(default_factory=Counter)
    """By model."""
    streams: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    wrong_adapter: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, text: str, right: str, tokens: int, stream: bool) -> None:
        """Notes an answer."""
        with self.lock:
            self.answers[name] += 1
            self.streams += stream
            self.tokens += tokens
            if unmarked({name: {"": text}}):
                self.wrong_adapter.append(f"{name}: {text!r}")
            if text != right:
                self.unequal.append(f"{name}: {text!r}, alone {right!r}")


def load(address: str, expected: Expected, clients: int, seconds: float, least: int = 1) -> Tally:
    """What `clients` at once get in that time, each at least so many answers."""
    tally, end = Tally(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=_client, args=(address, expected, seed, end, least, tally)) for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def _client(address: str, expected: Expected, seed: int, end: float, least: int, tally: Tally) -> None:
    from openai import OpenAI

    draw, count = random.Random(seed), 0
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client:
        while count < least or time.monotonic() < end:
            name, prompt, stream = draw.choice([*expected]), draw.choice(PROMPTS), draw.random() < 0.5
            count += 1
            try:
                text, tokens = (_streamed if stream else _whole)(client, name, prompt)
            except Exception as error:  # whatever a client meets is what is counted here
                with tally.lock:
                    tally.errors.append(f"{name}: {type(error).__name__}: {error}")
            else:
                tally.add(name, text, expected[name][prompt], tokens, stream)


def _settings(name: str, prompt: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    return {"model": name, "messages": turns, "max_tokens": TOKENS, "temperature": 0}


def _whole(client: Any, name: str, prompt: str) -> tuple[str, int]:
    done = client.chat.completions.create(**_settings(name, prompt))
    return done.choices[0].message.content, done.usage.completion_tokens


def _streamed(client: Any, name: str, prompt: str) -> tuple[str, int]:
    usage = {"include_usage": True}
    chunks = list(client.chat.completions.create(**_settings(name, prompt), stream=True, stream_options=usage))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    return text, chunks[-1].usage.completion_tokens


class Process:
    """`luthier serve` in a process of its own, on a free port."""

    def __init__(self, model: str, adapters: dict[str, Path], clients: int) -> None:
        flags = [word for mark, folder in adapters.items() for word in ("--adapter", f"{mark}={folder}")]
        words = [sys.executable, "-m", "luthier", "serve", model, *flags, "--port", "0", "--rows", str(clients)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout
        self.address = self.process.stdout.readline().partition("chat at ")[2].partition(",")[0]
        if not self.address:
            raise SystemExit("the server did not start.")

    def stop(self) -> int:
        """Ends it as an operator would; returns its status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fits, expects, asks, and writes what came of it."""
    parser = argparse.ArgumentParser(description="Many clients of `luthier serve` at once.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--minutes", type=float, default=5.0, help="0: fit and expect only")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path("runs/serve_load"))
    parser.add_argument("--where", default=Lesson.where, help="where the adapters act")
    parser.add_argument("--steps", type=int, default=Lesson.steps, help="of fitting an adapter")
    options = parser.parse_args(arguments)

    adapters = prepare(options.model, options.work, Lesson(steps=options.steps, where=options.where))
    kept = options.work / "expected.json"
    if not kept.exists():
        loaded = lt.model(options.model)
        write_json(kept, alone(loaded.model, loaded.processor, options.model, adapters))
    expected = json.loads(kept.read_text())
    if wrong := unmarked(expected):
        raise SystemExit("not every adapter learned its mark; fit longer:\n" + "\n".join(wrong))
    if not options.minutes:
        return
    server = Process(options.model, adapters, options.clients)
    began = time.monotonic()
    tally = load(server.address, expected, options.clients, 60 * options.minutes)
    seconds = time.monotonic() - began
    figures = {
        "model": options.model, "clients": options.clients, "adapters": len(adapters), "minutes": seconds / 60,
        "answers": tally.answers.total(), "streams": tally.streams, "tokens": tally.tokens,
        "by_model": dict(sorted(tally.answers.items())), "errors": len(tally.errors),
        "wrong_adapter": len(tally.wrong_adapter), "unequal_to_one_by_one": len(tally.unequal),
        "status_of_the_server": server.stop(),
        "first_failures": [*tally.errors, *tally.wrong_adapter, *tally.unequal][:10],
    }  # fmt: skip
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
