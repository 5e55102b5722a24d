"""A request on its way through the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from luthier.serving.engine.request import Chunk, Deliver, Request, Token
from luthier.serving.engine.sampling import Choice, drawing
from luthier.serving.engine.text import Reader, token_texts

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What turns tokens into text."""

    tokenizer: Any
    stops: Collection[int]
    """Tokens that end an answer."""
    text: Callable[[int], str]
    """The text of a token alone."""

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Vocabulary:
        """Answers end where those of `luthier.generate` do."""
        from luthier.evaluating.generate import stop_ids

        return cls(tokenizer, frozenset(stop_ids(model, tokenizer)), token_texts(tokenizer))


class Job:
    """A request, what it has got so far, and whether it is over."""

    def __init__(self, request: Request, deliver: Deliver, vocabulary: Vocabulary, most: int) -> None:
        self.request, self._deliver, self._vocabulary = request, deliver, vocabulary
        self._most = most
        self._ends = {*request.stop_tokens, *(vocabulary.stops if request.own_ends else ())}
        self._reader = Reader(vocabulary.tokenizer, request.prompt, request.stop)
        self.draw = drawing(request.temperature, request.top_p, request.seed, request.logprobs, request.top_k)
        self._untold: list[Token] = []
        self.generated = 0
        self.last = 0
        """The newest token."""
        self.cancelled = False
        self.finish: str | None = None
        """How it ended; None while it runs."""

    def take(self, choice: Choice | None) -> None:
        """One more token; None: the model's logits were no numbers."""
        if choice is None:
            return self.fail("the model's logits are NaN or infinite.")
        self.last = choice.token
        self.generated += 1
        if self.request.logprobs is not None:
            self._untold.append(self._token(choice))
        ended = choice.token in self._ends
        text = "" if ended else self._reader.add(choice.token)
        over = ended or self._reader.stopped or self.generated >= self._most
        if over:
            text += self._reader.rest()
            self._end("stop" if ended or self._reader.stopped else "length", text)
        elif text:
            self._send(Chunk(text, self._told(), generated=self.generated))

    def _token(self, choice: Choice) -> Token:
        text = self._vocabulary.text
        top = tuple((token, text(token), logprob) for token, logprob in choice.top)
        return Token(choice.token, text(choice.token), choice.logprob, top)

    def _told(self) -> tuple[Token, ...]:
        told, self._untold = tuple(self._untold), []
        return told

    def cancel(self) -> None:
        """Ends it, with what was held back."""
        if self.finish is None:
            self._end("cancelled", self._reader.rest())

    def fail(self, why: str) -> None:
        """Ends it with an error."""
        if self.finish is None:
            self._end("error", error=why)

    def _end(self, finish: str, text: str = "", error: str | None = None) -> None:
        self.finish = finish
        self._send(Chunk(text, self._told(), finish, error, self.generated))

    def _send(self, chunk: Chunk) -> None:
        try:
            self._deliver(chunk)
        except Exception:  # whoever asked is at fault, and no other row may suffer for it
            log.exception("a piece could not be delivered; its request ends")
            self.finish = "error"
