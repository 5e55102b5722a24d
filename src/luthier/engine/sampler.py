"""Answers on the caller's thread, by the engine's batches: for training, evaluation and `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luthier.core.adapters.control import RowAssignment, acting, set_acting
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.data import stop_text
from luthier.data.pictures import Seen
from luthier.engine.batch import Assignment, AsTheyAct
from luthier.engine.job import Job, Vocabulary
from luthier.engine.request import Request
from luthier.engine.sampling import Choice
from luthier.engine.servable import check_servable
from luthier.engine.stops import stop_ids, text_of
from luthier.engine.turns import Turns
from luthier.engine.worker import Worker

ROWS = 64
"""Answers that are decoded at a time."""
TAIL = 16
"""Last tokens in which a text that ends answers is looked for."""


@dataclass(frozen=True)
class Ask:
    """A prompt to answer once."""

    prompt: tuple[int, ...]
    """Token ids."""
    seed: int
    """Decides the draws of this answer, whatever else is decoded beside it."""
    max_tokens: int
    """The most tokens of the answer."""
    seen: Seen | None = None
    """The prompt again, with its pictures, where it has some."""


@dataclass(frozen=True)
class Drawn:
    """A sampled answer."""

    ids: tuple[int, ...]
    """Its tokens, the one that ended it included."""
    text: str
    """Without what ended it."""
    finish: str
    """`stop`, or `length` where it hit the limit."""


class Answer(Job):
    """A job that keeps its tokens, which nobody waits for piece by piece."""

    def __init__(self, request: Request, vocabulary: Vocabulary, stop: str) -> None:
        super().__init__(request, lambda chunk: None, vocabulary, request.max_tokens)
        self.why = ""
        self._stop = stop

    def take(self, choice: Choice | None) -> None:
        """One more token, without its text."""
        if choice is None:
            return self.fail("the model's logits are NaN or infinite.")
        self.ids.append(choice.token)
        if choice.token in self._vocabulary.stops or self._said():
            self.finish = "stop"
        elif self.generated >= self._most:
            self.finish = "length"
        else:
            self.turn()

    def _said(self) -> bool:
        return bool(self._stop) and self._stop in self._vocabulary.tokenizer.decode(self.ids[-TAIL:])

    def fail(self, why: str) -> None:
        """Ends it with an error, which is kept."""
        if self.finish is None:
            self.finish, self.why = "error", why


class Sampler:
    """Decodes answers with an adapter of a model, whose tensors are read where they are: nothing is copied.

    Rows join and leave a batch of at most `rows`, as in the engine that serves, whose parts these are. `adapter` names
    the adapter of every row; without it, those that act on the model act on all rows. With `turns`, adapters change
    within an answer, and `adapter` (None: the base) has what is nobody else's. The same asks on the same weights
    give the same bits; the model's modes and the random state are left as they were. Raises `LuthierError` for a model
    that the engine cannot decode.
    """

    def __init__(
        self, model: Any, tokenizer: Any, adapter: str | None = None, rows: int = ROWS, turns: Turns | None = None
    ) -> None:
        with eval_mode(model):
            check_servable(model)
        self._model, self._tokenizer, self._adapter, self._rows = model, tokenizer, adapter, rows
        self._turns = turns
        self._stops = stop_ids(model, tokenizer)
        self._vocabulary = Vocabulary(tokenizer, frozenset(self._stops), lambda token: "")
        self._stop = stop_text(tokenizer)

    def __call__(
        self, asks: Sequence[Ask], temperature: float, top_p: float, done: Callable[[int], Any] = int
    ) -> list[Drawn]:
        """Returns an answer to each, in their order; `done(n)` hears of every n finished."""
        drawn, turns = (temperature, top_p), self._turns
        requests = [
            Request(a.prompt, self._adapter, a.max_tokens, *drawn, a.seed, seen=a.seen, turns=turns) for a in asks
        ]
        answers = [Answer(request, self._vocabulary, self._stop) for request in requests]
        if self._adapter is None and self._turns is None:
            self._decode(answers, AsTheyAct(), done)
        else:
            before = acting(self._model)
            try:
                self._decode(answers, RowAssignment(self._model), done)
            finally:
                set_acting(self._model, before)
        if failed := [answer for answer in answers if answer.finish == "error"]:
            raise LuthierError(f"{len(failed)} of {len(answers)} answers could not be sampled: {failed[0].why}")
        return [self._drawn(answer) for answer in answers]

    def _decode(self, answers: Sequence[Answer], assignment: Assignment, done: Callable[[int], Any]) -> None:
        worker, over = Worker(self._model, self._rows, len(answers), row_assignment=assignment), 0
        with eval_mode(self._model), torch.random.fork_rng(devices=[]):
            try:
                with worker.changed:
                    worker.add(answers)
                while over < len(answers):
                    worker.round()
                    ended = sum(answer.finish is not None for answer in answers)
                    if ended > over:
                        done(ended - over)
                    over = ended
            finally:
                worker.batch.clear()

    def _drawn(self, answer: Answer) -> Drawn:
        text = text_of(self._tokenizer, answer.ids, self._stops)
        return Drawn(tuple(answer.ids), text, str(answer.finish))
