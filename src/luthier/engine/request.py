"""The requests and answers of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from luthier.core.errors import LuthierError
from luthier.data.pictures import Seen
from luthier.engine.grammar import Compiled
from luthier.engine.shaping import PLAIN, Shaping
from luthier.engine.turns import Turns


class Busy(LuthierError):
    """The queue is full, or the engine takes no more requests: try again later."""


@dataclass(frozen=True)
class Request:
    """A prompt with the settings of its generation."""

    prompt: tuple[int, ...]
    """Token ids, special tokens included."""
    adapter: str | None = None
    """None: the base."""
    max_tokens: int = 128
    """The most tokens of the answer; 0 needs `echo`."""
    temperature: float = 1.0
    """The sampling temperature; 0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None
    """The same seed gives the same text, whatever else runs; None draws one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and do not appear in it."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens that end the answer, beside the model's own."""
    own_ends: bool = True
    """Whether the model's own end tokens end it."""
    logprobs: int | None = None
    """How many alternatives to tell for every token; None: no log-probabilities, 0: the chosen token's only."""
    shaping: Shaping = PLAIN
    grammar: Compiled | None = None
    """What the answer has to match."""
    shown: frozenset[int] = frozenset()
    """Special tokens that are text of the answer, as those that open a call of a tool."""
    echo: str | None = None
    """The prompt's text, when the answer is to begin with it; with `logprobs`, with those of its tokens."""
    seen: Seen | None = None
    """The prompt again, with its pictures, where it has some."""
    turns: Turns | None = None
    """Who writes the arguments of tools, where `adapter` does not; None: nobody."""

    def adapters(self) -> set[str | None]:
        """Returns all adapters that may act on it."""
        return {self.adapter, *(() if self.turns is None else self.turns.arguments.values())}


@dataclass(frozen=True)
class Token:
    """A token. Log-probabilities are the model's own, before temperature, penalties, grammars and top_p."""

    id: int
    text: str
    """The text of this token alone; parts of a character are shown as U+FFFD."""
    logprob: float | None
    """None for the first of a prompt, which nothing stands before."""
    top: tuple[tuple[int, str, float], ...] = ()
    """The likeliest tokens: id, text and log-probability."""


@dataclass(frozen=True)
class Chunk:
    """A part of an answer. Texts of all pieces together are the answer; the last one alone has a `finish`."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    """With `Request.logprobs`, the tokens that brought this text, the one that ended the answer included."""
    finish: str | None = None
    """The reason for the end: stop, length, cancelled or error."""
    error: str | None = None
    """What went wrong, with finish error."""
    generated: int = 0
    """How many tokens the answer has so far, the one that ended it included."""


@dataclass(frozen=True)
class Statistics:
    """What the engine did since it was made, and what it does now."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    """Requests that ended with stop, length or cancelled."""
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    """Passes in which every running row got a token."""
    busy: float = 0.0
    """Seconds in which the model had work."""
    adapters: int = 0


Deliver = Callable[[Chunk], None]


class Ticket:
    """Stands for a request that was submitted."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel

    def cancel(self) -> None:
        """Ends the request before the next token, with finish cancelled; nothing if it has ended. Thread-safe."""
        self._cancel()


MAX_LOGPROBS = 20


def refuse_wrong(request: Request) -> None:
    """Raises `LuthierError` for settings that no model could serve."""
    if not request.prompt:
        raise LuthierError("the prompt has no tokens; give at least one.")
    least = 1 if request.echo is None else 0
    if request.max_tokens < least:
        raise LuthierError(f"max_tokens is {request.max_tokens}; expected at least {least}.")
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        raise LuthierError(f"temperature is {request.temperature}; expected 0 (greedy) or more.")
    if not 0 < request.top_p <= 1:
        raise LuthierError(f"top_p is {request.top_p}; expected above 0 and at most 1.")
    if not all(request.stop):
        raise LuthierError("a stop text is empty; leave it out.")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_LOGPROBS:
        raise LuthierError(f"logprobs is {request.logprobs}; expected 0 to {MAX_LOGPROBS}.")
