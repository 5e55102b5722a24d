"""An engine without a model: every model answers with its own name, one character a token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.engine.grammar import Grammar
from luthier.engine.request import Busy, Chunk, Request, Statistics, Ticket, Token, refuse_wrong
from support.tiny import TEMPLATE, tokenizer


def answer(adapter: str | None) -> str:
    """What a model says, if it may: longer than most tests let it."""
    return f"I am {adapter or 'base'}. " * 6


class FakeEngine:
    """As `luthier.engine.engine.Engine`, as far as HTTP sees it. Requests wait while `gate` is not set."""

    def __init__(self, *adapters: str, waiting: int = 8, max_length: int = 400, pace: float = 0.0) -> None:
        self.names, self.waiting, self.max_length, self.pace = list(adapters), waiting, max_length, pace
        self.tokenizer = tokenizer(TEMPLATE)
        self.gate = threading.Event()
        self.gate.set()
        self.requests: list[Request] = []
        self.grammars: list[Grammar] = []
        self.live: set[int] = set()
        self.cancelled: set[int] = set()
        self.finished = self.generated = 0
        self.draining = False
        self.say: Callable[[Request], str] = lambda request: answer(request.adapter)

    def start(self) -> None: ...

    def close(self) -> None:
        self.cancelled |= set(self.live)
        self.gate.set()

    def drain(self, seconds: float) -> bool:
        self.draining = True
        end = time.monotonic() + seconds
        while self.live and time.monotonic() < end:
            time.sleep(0.005)
        return not self.live

    def adapters(self) -> list[str]:
        return list(self.names)

    def load(self, name: str, folder: str | Path) -> None:
        if (Path(folder) / "damaged").exists():
            raise LuthierError(f"{folder} is damaged.")
        self.names.append(name)

    def unload(self, name: str) -> None:
        self.names.remove(name)

    def statistics(self) -> Statistics:
        return Statistics(
            running=len(self.live), finished=self.finished, generated_tokens=self.generated, adapters=len(self.names)
        )

    def compiled(self, grammar: Grammar) -> Any:
        self.grammars.append(grammar)
        if grammar.text == "wrong":
            raise LuthierError("the grammar cannot be used: it is wrong")
        return grammar

    def embed(self, prompts: Sequence[Sequence[int]], adapter: str | None, pooling: str) -> list[list[float]]:
        return [[float(len(prompt)), float(len(adapter or "")), float(pooling == "mean")] for prompt in prompts]

    @property
    def places(self) -> int:
        return self.waiting

    def submit_all(self, requests: Sequence[Request], delivers: Sequence[Callable[[Chunk], None]]) -> list[Ticket]:
        if len(self.live) + len(requests) > self.waiting:
            raise Busy(f"{self.waiting} requests are waiting already; try again later.")
        return [self.submit(request, deliver) for request, deliver in zip(requests, delivers, strict=True)]

    def submit(self, request: Request, deliver: Callable[[Chunk], None]) -> Ticket:
        refuse_wrong(request)
        if len(request.prompt) >= self.max_length:
            raise LuthierError(f"the prompt has {len(request.prompt)} tokens, at most {self.max_length} may be.")
        if self.draining or len(self.live) >= self.waiting:
            raise Busy(f"{self.waiting} requests are waiting already; try again later.")
        number = len(self.requests)
        self.requests.append(request)
        self.live.add(number)
        threading.Thread(target=self._run, args=(number, request, deliver), daemon=True).start()
        return Ticket(lambda: self.cancelled.add(number))

    def _run(self, number: int, request: Request, deliver: Callable[[Chunk], None]) -> None:
        while not self.gate.wait(0.005) and number not in self.cancelled:
            pass
        for chunk in self._pieces(number, request):
            self.generated = self.generated + 1
            if chunk.finish:
                self.live.discard(number)
                self.finished += 1
            deliver(chunk)
            if chunk.finish:
                return

    def _pieces(self, number: int, request: Request) -> Any:
        text = self.say(request)
        if request.echo is not None:
            yield Chunk(request.echo, finish=None if request.max_tokens else "length")
        if text == "fail":
            yield Chunk(finish="error", error="the model made no sense")
        ends = [at for stop in request.stop if (at := text.find(stop)) >= 0]
        text, stopped = (text[: min(ends)], True) if ends else (text, False)
        for i, letter in enumerate(text[: request.max_tokens], 1):
            time.sleep(self.pace)
            if number in self.cancelled:
                yield Chunk(finish="cancelled", generated=i)
            tokens: tuple[Token, ...] = ()
            if request.logprobs is not None:
                top = tuple((j, other, -1.0 - j) for j, other in enumerate("xyz"[: request.logprobs]))
                tokens = (Token(7, letter, -0.5, top),)
            last = i == min(len(text), request.max_tokens)
            finish = None if not last else "length" if i == request.max_tokens and not stopped else "stop"
            yield Chunk(letter, tokens, finish, generated=i)
