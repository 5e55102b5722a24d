"""A real socket: clients that leave, and a process that is told to stop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import LuthierError
from luthier.serving.http.listening import bind
from support.served import serving

HELLO = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 60}


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def ask(address: str, **more: object) -> socket.socket:
    """A connection that has sent a request for a chat and read nothing."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps(HELLO | more).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
    made = socket.create_connection((host, int(port)))
    made.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
    return made


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_leaves_cancels_its_request(engine, stream, begun):
    engine.pace, engine.say = 0.01, lambda request: "x" * 1000
    if not begun:
        engine.gate.clear()
    with serving(engine) as address:
        left = ask(address, stream=stream, n=2, max_tokens=1000)
        until(lambda: len(engine.requests) == 2 and engine.generated > (5 if begun else -1))
        assert not engine.cancelled
        left.close()
        until(lambda: engine.cancelled == {0, 1} and not engine.live)
        assert engine.generated < 1000


def test_a_request_that_is_half_sent_asks_nothing(engine):
    with serving(engine) as address:
        host, port = address.removeprefix("http://").split(":")
        half = socket.create_connection((host, int(port)))
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        half.close()
        with urllib.request.urlopen(f"{address}/health") as answer:
            assert answer.status == 200
    assert not engine.requests


def test_an_address_that_is_taken_is_told():
    with bind("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(LuthierError, match="in use"):
            bind("127.0.0.1", first.getsockname()[1])
    with pytest.raises(LuthierError, match="cannot serve at"):
        bind("192.0.2.1", 0)  # an address of documentation's own
    with pytest.raises(LuthierError, match="port is 70000"):
        bind("127.0.0.1", 70000)


PROCESS = """
import sys
sys.path[:0] = sys.argv[1:3]
import luthier
luthier.attach  # libraries load quietly by it, and this process is to say nothing of its own
from support.fake_engine import FakeEngine
from luthier.serving.http.guard import Guard
from luthier.serving.http.listening import bind
from luthier.serving.http.server import serve
from luthier.serving.http.service import Service
for pace, drain in zip(map(float, sys.argv[3::2]), map(float, sys.argv[4::2])):
    engine = FakeEngine(pace=pace)
    bound = bind("127.0.0.1", 0)
    ready = lambda: print(bound.getsockname()[1], flush=True)
    serve(Service(engine, engine.tokenizer, "base"), Guard(), bound, drain, ready)
    print("finished", engine.finished, flush=True)
"""


class Process:
    """Servers in a process of their own, one after the other, each with a pace and the seconds of its drain."""

    def __init__(self, *servers: float) -> None:
        here = Path(__file__).parent
        words = [sys.executable, "-c", PROCESS, str(here), str(here.parent), *map(str, servers)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.next()

    def next(self) -> None:
        """Waits for the next server."""
        self.address = f"http://127.0.0.1:{self.line()}"
        self.heard: list[bytes] = []

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def chat(self) -> threading.Thread:
        """A client that reads its stream to the end; returns once its first bytes are there."""
        first = threading.Event()

        def read() -> None:
            with urllib.request.urlopen(self.request(stream=True)) as answer:
                for line in answer:
                    self.heard.append(line)
                    first.set()

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        assert first.wait(10)
        return thread

    def request(self, **more: object) -> urllib.request.Request:
        body = json.dumps(HELLO | more).encode()
        return urllib.request.Request(
            f"{self.address}/v1/chat/completions", body, {"content-type": "application/json"}
        )  # fmt: skip

    def status(self) -> int:
        try:
            with urllib.request.urlopen(f"{self.address}/health") as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


def test_sigterm():
    server = Process(0.02, 30, 0.2, 0.3)

    # what runs may end, what is new is refused
    client = server.chat()
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.status() == 503)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.request())
    assert refused.value.code == 503 and refused.value.headers["retry-after"]
    client.join(15)
    assert server.heard[-2:] == [b"data: [DONE]\n", b"\n"]
    assert server.line() == "finished 1"

    # what takes too long is cut, and told so
    server.next()
    client = server.chat()
    server.process.send_signal(signal.SIGTERM)
    client.join(15)
    assert b"the server stopped before the answer was complete" in server.heard[-2]
    _, err = server.process.communicate(timeout=15)
    assert (server.process.returncode, err) == (0, "")
