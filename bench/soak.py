"""Honest clients of `luthier serve` among hostile ones: is every honest answer right, memory flat, /health quick?

A server of its own process gets `--clients` honest clients, each from an address of its own (127.0.0.x), that ask four
adapters and the base, half of it as streams; every answer has to be what one-by-one greedy decoding gives. Beside them
hostile ones do what `HOSTILE` lists, from four addresses. A process of its own asks /health every 50 ms. The server's
resident set is read every second: compared are the medians of the second and the last quarter.

python -m bench soak [--minutes 60] [--clients 32] [--model stories15m] [--out bench/results/soak.json]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench._registry import results_of

import luthier as lt

PROMPTS = ("Once upon a time", "The cat sat on", "Lily and Tom went to the park. They", "One day, a big dog")
TOKENS = 24
HEADERS = {"content-type": "application/json"}
PROBE = """
import http.client, json, sys, time
host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
found, end = [], time.monotonic() + seconds
while time.monotonic() < end:
    began = time.perf_counter()
    try:
        call = http.client.HTTPConnection(host, port, timeout=30, source_address=("127.0.0.9", 0))
        call.request("GET", "/health")
        good = call.getresponse().read() and True
        call.close()
    except OSError:
        good = False
    found.append((time.perf_counter() - began) if good else None)
    time.sleep(0.05)
print(json.dumps(found))
"""


def adapters(model: str, work: Path) -> dict[str, Path]:
    """Four adapters whose weights are drawn, so that each says something else."""
    found = {}
    for seed, name in enumerate(("ash", "bay", "elm", "fig")):
        import torch

        loaded = lt.attach(lt.model(model).model, lt.LoRA(rank=4), name=name)
        draw = torch.Generator().manual_seed(seed)
        for parameter in lt.trainable(loaded).values():
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=draw)
        found[name] = lt.save(loaded, work / name)
    return found


def expected(model: str, folders: dict[str, Path]) -> dict[str, dict[str, str]]:
    """What every model says to every prompt, decoded greedily and alone."""
    loaded = lt.model(model)

    def answers() -> dict[str, str]:
        said = lt.generate(loaded.model, loaded.processor, list(PROMPTS), max_new_tokens=TOKENS, batch=1)
        return dict(zip(PROMPTS, said, strict=True))

    found = {model: answers()}
    for name, folder in folders.items():
        lt.load(loaded.model, folder, name)
        found[name] = answers()
        lt.detach(loaded.model)
    return found


@dataclass
class Soak:
    """What goes on, and what came of it."""

    host: str
    port: int
    right: dict[str, dict[str, str]]
    end: float
    answers: int = 0
    busy: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    hostile: Counter[str] = field(default_factory=Counter)
    """Hostile attempts by kind and what they got."""
    seconds: list[float] = field(default_factory=list)
    """Of the honest answers."""

    def open(self, address: str) -> http.client.HTTPConnection:
        """A connection from an address of this machine."""
        return http.client.HTTPConnection(self.host, self.port, timeout=120, source_address=(address, 0))

    def going(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.end

    def honest(self, number: int) -> None:
        """One client that asks, reads and compares."""
        draw = random.Random(number)
        while self.going():
            name, prompt, stream = draw.choice([*self.right]), draw.choice(PROMPTS), draw.random() < 0.5
            turns = [{"role": "user", "content": prompt}]
            body = {"model": name, "messages": turns, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
            began = time.monotonic()
            try:
                status, text = self.ask(f"127.0.0.{20 + number}", body)
            except Exception as error:  # whatever a client meets is what is counted
                self.errors.append(f"{type(error).__name__}: {error}")
                continue
            if status == 429:
                self.busy += 1
            elif status != 200:
                self.errors.append(f"{status}: {text}")
            else:
                self.answers += 1
                self.seconds.append(time.monotonic() - began)
                if text.strip() != self.right[name][prompt].strip():  # a first space is the tokenizer's
                    self.wrong.append(f"{name}: {text!r}, alone {self.right[name][prompt]!r}")

    def ask(self, address: str, body: dict[str, Any]) -> tuple[int, str]:
        """(status, the answer's text)."""
        call = self.open(address)
        try:
            call.request("POST", "/v1/chat/completions", json.dumps(body), HEADERS)
            answer = call.getresponse()
            raw = answer.read().decode()
        finally:
            call.close()
        if answer.status != 200:
            return answer.status, raw
        if not body["stream"]:
            return 200, json.loads(raw)["choices"][0]["message"]["content"]
        lines = [line.removeprefix("data: ") for line in raw.split("\n\n") if line]
        if lines[-1] != "[DONE]":
            return 500, lines[-1]
        deltas = (choice["delta"] for line in lines[:-1] for choice in json.loads(line)["choices"])
        return 200, "".join(delta.get("content") or "" for delta in deltas)

    def attack(self, kind: str, number: int) -> None:
        """One hostile client, over and over."""
        draw = random.Random(number)
        while self.going():
            try:
                told = HOSTILE[kind](self, f"127.0.1.{1 + number % 4}", draw)
            except (OSError, http.client.HTTPException) as error:
                told = type(error).__name__
            self.hostile[f"{kind}: {told}"] += 1

    def post(self, address: str, raw: bytes, headers: dict[str, str] | None = None) -> str:
        """The status of a call with any body."""
        call = self.open(address)
        try:
            call.request("POST", "/v1/chat/completions", raw, HEADERS | (headers or {}))
            answer = call.getresponse()
            answer.read()
            return str(answer.status)
        finally:
            call.close()

    def body(self, **more: Any) -> bytes:
        """A request for the base."""
        turns = [{"role": "user", "content": "hello"}]
        base = next(iter(self.right))
        return json.dumps({"model": base, "messages": turns, "max_tokens": 8, **more}).encode()


def long_prompt(soak: Soak, address: str, draw: random.Random) -> str:
    """A prompt of almost 1 MB."""
    return soak.post(address, soak.body(messages=[{"role": "user", "content": "word and word " * 70_000}]))


def many_answers(soak: Soak, address: str, draw: random.Random) -> str:
    """128 answers, which is more than a client may have, or as many as it may."""
    return soak.post(address, soak.body(n=draw.choice((128, 16)), max_tokens=64))


def nonsense(soak: Soak, address: str, draw: random.Random) -> str:
    """Bodies and headers that are no request."""
    bodies = (
        b"[" * 500_000, b'{"model": "\\ud800"}', draw.randbytes(1000), b'{"a": ' + b"9" * 5000 + b"}",
        b'{"model": "x", "messages": [' + b'{"role": 1},' * 70_000 + b"1]}", soak.body(**{"\ud800": 1}),
        b'{"model": "x", "prompt": [' + b"1," * 400_000 + b"1]}",
    )  # fmt: skip
    return soak.post(address, draw.choice(bodies), {"origin": "http://["} if draw.random() < 0.2 else {})


def silent(soak: Soak, address: str, draw: random.Random) -> str:
    """Forty connections that say nothing, or a part of a head."""
    with contextlib.ExitStack() as held:
        for _ in range(40):
            made = socket.create_connection((soak.host, soak.port), timeout=60, source_address=(address, 0))
            held.enter_context(made)
            made.sendall(draw.choice((b"", b"GET / HTTP/1.1\r\nx: ")))
        time.sleep(min(8.0, max(0.0, soak.end - time.monotonic())))
    return "held"


def trickled(soak: Soak, address: str, draw: random.Random) -> str:
    """A body that comes a byte at a time."""
    raw = soak.body()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {soak.host}\r\ncontent-type: application/json\r\n"
    with socket.create_connection((soak.host, soak.port), timeout=60, source_address=(address, 0)) as made:
        made.sendall(head.encode() + b"content-length: %d\r\n\r\n" % (len(raw) + 50))
        for byte in raw:
            made.sendall(bytes([byte]))
            time.sleep(0.2)
            if not soak.going():
                break
    return "sent"


def unread(soak: Soak, address: str, draw: random.Random) -> str:
    """Streams that are asked for and dropped, or kept and never read."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {soak.host}\r\ncontent-type: application/json\r\n"
    raw = soak.body(stream=True, n=4, max_tokens=200)
    with socket.create_connection((soak.host, soak.port), timeout=60, source_address=(address, 0)) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        made.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(raw) + raw)
        time.sleep(draw.choice((0.0, 0.3, 5.0)))
    return "left"


HOSTILE: dict[str, Callable[[Soak, str, random.Random], str]] = {
    each.__name__: each for each in (long_prompt, many_answers, nonsense, silent, trickled, unread)
}
"""What hostile clients do."""


def resident(pid: int) -> float:
    """MiB of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def served(model: str, folders: dict[str, Path], rows: int) -> tuple[subprocess.Popen, str, int]:
    """A server in a process of its own, with its address."""
    flags = [word for name, folder in folders.items() for word in ("--adapter", f"{name}={folder}")]
    words = [sys.executable, "-m", "luthier", "serve", model, *flags, "--port", "0", "--rows", str(rows)]
    process = subprocess.Popen(
        [*words, "--patience", "5"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout
    address = process.stdout.readline().partition("chat at http://")[2].partition(",")[0]
    if not address:
        raise SystemExit("the server did not start.")
    host, port = address.split(":")
    return process, host, int(port)


def run(soak: Soak, clients: int, pid: int) -> list[float]:
    """All clients until the end; the server's resident set, second by second."""
    threads = [threading.Thread(target=soak.honest, args=(number,)) for number in range(clients)]
    kinds = [*HOSTILE, "long_prompt", "long_prompt", "long_prompt"]
    threads += [threading.Thread(target=soak.attack, args=(kind, i)) for i, kind in enumerate(kinds)]
    for thread in threads:
        thread.start()
    sizes = []
    while soak.going():
        sizes.append(resident(pid))
        time.sleep(1)
    for thread in threads:
        thread.join()
    return sizes


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares, soaks, writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--model", default="stories15m")
    parser.add_argument("--out", type=Path, default=results_of("soak"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="luthier-soak-") as work:
        folders = adapters(options.model, Path(work))
        right = expected(options.model, folders)
        process, host, port = served(options.model, folders, options.clients)
        seconds = 60 * options.minutes
        soak = Soak(host, port, right, time.monotonic() + seconds)
        probe = [sys.executable, "-c", PROBE, host, str(port), str(seconds)]
        with subprocess.Popen(probe, stdout=subprocess.PIPE, text=True) as prober:
            sizes = run(soak, options.clients, process.pid)
            said = prober.communicate()[0]
        process.send_signal(signal.SIGTERM)
        status = process.wait(90)
    found = figures(soak, sizes, json.loads(said)) | {"status_of_the_server": status, "minutes": options.minutes}
    found |= {"model": options.model, "clients": options.clients, "cores": len(os.sched_getaffinity(0))}
    found |= {"load_average": os.getloadavg()[1], "measured": time.strftime("%Y-%m-%d")}
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def figures(soak: Soak, sizes: list[float], probes: list[float | None]) -> dict[str, Any]:
    """What is told."""
    quarter, health = len(sizes) // 4, sorted(each for each in probes if each is not None)
    early, late = (statistics.median(part) for part in (sizes[quarter : 2 * quarter], sizes[-quarter:]))
    return {
        "answers": soak.answers, "unequal_to_one_by_one": len(soak.wrong), "errors": len(soak.errors),
        "busy": soak.busy, "median_seconds": round(statistics.median(soak.seconds or [0]), 3),
        "health": {
            "asked": len(probes), "failed": sum(each is None for each in probes),
            **{f"p{p}_ms": round(1000 * health[min(len(health) - 1, len(health) * p // 100)], 1) for p in (50, 90, 99)},
        },
        "resident_mib": {"second_quarter": round(early, 1), "last_quarter": round(late, 1), "peak": round(max(sizes))},
        "hostile": dict(sorted(soak.hostile.items())),
        "first_failures": [*soak.wrong, *soak.errors][:5],
    }  # fmt: skip
