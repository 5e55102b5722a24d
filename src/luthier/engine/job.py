"""A request on its way through the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from luthier.engine.grammar import Constraint
from luthier.engine.request import Chunk, Deliver, Request, Token
from luthier.engine.sampling import Choice, drawing
from luthier.engine.scoring import Scores
from luthier.engine.shaping import Shaper
from luthier.engine.stops import stop_ids
from luthier.engine.text import Reader, token_texts

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
        return cls(tokenizer, frozenset(stop_ids(model, tokenizer)), token_texts(tokenizer))


def shaper_of(request: Request) -> Shaper | None:
    """Returns what shapes the logits of a request's answer; None where nothing does."""
    if not (request.shaping.changes or request.grammar):
        return None
    constraint = None if request.grammar is None else request.grammar.start()
    return Shaper(request.shaping, request.prompt, constraint)


class Job:
    """A request, what it has got so far, and whether it is over."""

    def __init__(self, request: Request, deliver: Deliver, vocabulary: Vocabulary, most: int) -> None:
        self.request, self._deliver, self._vocabulary = request, deliver, vocabulary
        self._most = most
        self._ends = {*request.stop_tokens, *(vocabulary.stops if request.own_ends else ())}
        self._reader = Reader(vocabulary.tokenizer, request.prompt, request.stop, request.shown)
        self._shaper = shaper_of(request)
        self.draw = drawing(
            request.temperature, request.top_p, request.seed, request.logprobs, request.shaping, self._shaper
        )
        self._untold: list[Token] = []
        self.ids: list[int] = []
        """The tokens of the answer."""
        self.adapter = request.adapter
        """The one whose the next token is."""
        self.turned = False
        """Whether that is another than the one whose keys and values the row has: it has to read it all again."""
        self.cancelled = False
        self.finish: str | None = None
        """How it ended; None while it runs."""

    def take(self, choice: Choice | None) -> None:
        """One more token; None: the model's logits were no numbers."""
        if choice is None:
            return self.fail(self._stuck() or "the model's logits are NaN or infinite.")
        self.ids.append(choice.token)
        if self._shaper is not None:
            self._shaper.took(choice.token)
        if self.request.logprobs is not None:
            self._untold.append(self._token(choice))
        ended = choice.token in self._ends
        text = "" if ended else self._reader.add(choice.token)
        ended = ended or self._complete()
        over = ended or self._reader.stopped or self.generated >= self._most
        if over:
            text += self._reader.rest()
            self._end("stop" if ended or self._reader.stopped else "length", text)
            return
        if text:
            self._send(Chunk(text, self._told(), generated=self.generated))
        self.turn()

    def turn(self) -> None:
        """Finds whose the next token is."""
        if (turns := self.request.turns) is not None:
            found = turns.adapter(self.request.adapter, self.ids)
            self.turned, self.adapter = found != self.adapter, found

    def enters(self) -> None:
        """It joins the rows: all that there is of it is read by its adapter."""
        self.turned = False

    @property
    def generated(self) -> int:
        """How many tokens the answer has."""
        return len(self.ids)

    @property
    def text(self) -> tuple[int, ...]:
        """The tokens of its prompt and of the answer so far."""
        return (*self.request.prompt, *self.ids) if self.ids else self.request.prompt

    @property
    def apart(self) -> tuple[object, ...] | None:
        """What the jobs that enter in one pass have in common where one has pictures; None for one without."""
        seen = self.request.seen
        return None if seen is None else (id(seen), self.adapter, self.text)

    @property
    def stays(self) -> bool:
        """Whether its row goes on as it is."""
        return self.finish is None and not self.turned

    @property
    def last(self) -> int:
        """The newest token."""
        return self.ids[-1]

    def read(self, scores: Scores) -> None:
        """Its prompt was read, with these scores of the prompt's tokens; says the prompt where that is asked for."""
        if self.request.echo is None or self.ids:
            return
        tokens = () if self.request.logprobs is None else tuple(self._scored(scores))
        if self._most:
            self._send(Chunk(self.request.echo, tokens))
        else:
            self._untold = list(tokens)
            self._end("length", self.request.echo)

    @property
    def scored(self) -> int | None:
        """How many alternatives to tell of the prompt's tokens; None: nothing."""
        return None if self.request.echo is None or self.ids else self.request.logprobs

    def _scored(self, scores: Scores) -> Iterator[Token]:
        text, count = self._vocabulary.text, self.request.logprobs or 0
        for token, (logprob, top) in zip(self.request.prompt, scores, strict=True):
            yield Token(token, text(token), logprob, tuple((i, text(i), p) for i, p in top[:count]))

    def _constraint(self) -> Constraint | None:
        return None if self._shaper is None else self._shaper.constraint

    def _complete(self) -> bool:
        """Whether the answer matches its grammar, and nothing more may follow."""
        constraint = self._constraint()
        return constraint is not None and constraint.complete

    def _stuck(self) -> str:
        """Why its grammar leaves no token."""
        constraint = self._constraint()
        return (
            f"the grammar could not be followed: {constraint.why}" if constraint is not None and constraint.why else ""
        )

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
