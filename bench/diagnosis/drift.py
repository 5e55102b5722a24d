"""Monitoring on SmolLM2: what `luthier serve --log` keeps, beside training data of the same domain and of another.

A server answers bank and travel questions (CLINC150) for three runs of a log: the first stands for the training data,
the second is more of the same (the null: nothing may be flagged), the third asks sums in words (GSM8K).

    python -m bench diagnosis-drift --data FOLDER [--rows 40] [--model smollm2-135m]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.diagnosis._fits import CHAT, parsed, recorded

from luthier.examining.monitor.run import monitor

CLIENTS, LONGEST = 8, 12
KEPT = ("trained", "answers", "drifted", "code", "inputs", "outputs")


def questions(file: Path, column: str, count: int, start: int = 0) -> list[str]:
    """`count` texts of a file, evenly taken from it."""
    rows = [json.loads(line)[column] for line in file.read_text(encoding="utf-8").splitlines()]
    return [rows[(start + 37 * n) % len(rows)] for n in range(count)]


def logged(work: Path, model: str, asked: Sequence[str], name: str) -> Path:
    """The log of a server that was asked these questions."""
    log = work / f"{name}.jsonl"
    words = [sys.executable, "-m", "luthier", "serve", model, "--port", "0", "--log", str(log), "--rows", str(CLIENTS)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert server.stdout
    address = server.stdout.readline().partition("chat at ")[2].partition(",")[0].rstrip("/")
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda text: ask(address, model, text), asked))
    server.send_signal(signal.SIGTERM)
    server.wait(60)
    return log


def ask(address: str, model: str, text: str) -> None:
    """One question; what is answered is in the log."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": LONGEST, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        answer.read()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves, asks, compares."""
    given = parsed(arguments, __doc__, "diagnosis-drift", data=True, rows=40, model=CHAT)
    intents, sums = given.data / "clinc150", given.data / "gsm8k"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        asked = {
            "training": questions(intents / "train.jsonl", "text", 2 * given.rows),
            "the same domain": questions(intents / "test.jsonl", "text", given.rows),
            "another domain": questions(sums / "test.jsonl", "question", given.rows),
        }
        logs = {name: logged(work, given.model, each, name.replace(" ", "-")) for name, each in asked.items()}
        for name in list(logs)[1:]:
            found[name] = monitor(logs[name], str(logs["training"])).to_dict()
    told = {name: {key: each[key] for key in KEPT} for name, each in found.items()}
    recorded(given.out, {"model": given.model, **told})


if __name__ == "__main__":
    main()
