"""Answers for training: the engine's batches, with the adapter under training as the one that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from luthier.core.adapters.control import acting, set_acting
from luthier.core.contracts.sampler import Ask, Drawn
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.data import stop_text
from luthier.evaluating.generate import stop_ids, text_of
from luthier.serving.engine.job import Job, Vocabulary
from luthier.serving.engine.request import Request
from luthier.serving.engine.sampling import Choice
from luthier.serving.engine.servable import check_servable
from luthier.serving.engine.worker import Worker

ROWS = 64
"""Answers that are decoded at a time."""
TAIL = 16
"""Last tokens in which a text that ends answers is looked for."""


class Answer(Job):
    """A job that keeps its tokens, which nobody waits for piece by piece."""

    def __init__(self, request: Request, vocabulary: Vocabulary, stop: str) -> None:
        super().__init__(request, lambda chunk: None, vocabulary, request.max_tokens)
        self.ids: list[int] = []
        self.why = ""
        self._stop = stop

    def take(self, choice: Choice | None) -> None:
        """One more token, without its text."""
        if choice is None:
            return self.fail("the model's logits are NaN or infinite.")
        self.last = choice.token
        self.ids.append(choice.token)
        self.generated += 1
        if choice.token in self._vocabulary.stops or self._said():
            self.finish = "stop"
        elif self.generated >= self._most:
            self.finish = "length"

    def _said(self) -> bool:
        return bool(self._stop) and self._stop in self._vocabulary.tokenizer.decode(self.ids[-TAIL:])

    def fail(self, why: str) -> None:
        """Ends it with an error, which is kept."""
        if self.finish is None:
            self.finish, self.why = "error", why


class EngineSampler:
    """Decodes with the adapter `adapter` of a model, on the caller's thread and in the order of the asks.

    Rows join and leave a batch of `ROWS` as in the engine that serves, whose parts these are. Nothing of the adapter is
    copied. The same asks on the same weights give the same bits.
    """

    def __init__(self, model: Any, tokenizer: Any, adapter: str) -> None:
        with eval_mode(model):
            check_servable(model)
        self._model, self._tokenizer, self._adapter = model, tokenizer, adapter
        self._stops = stop_ids(model, tokenizer)
        self._vocabulary = Vocabulary(tokenizer, frozenset(self._stops), lambda token: "")
        self._stop = stop_text(tokenizer)

    def __call__(self, asks: Sequence[Ask], max_tokens: int, temperature: float, top_p: float) -> list[Drawn]:
        requests = [Request(ask.prompt, self._adapter, max_tokens, temperature, top_p, ask.seed) for ask in asks]
        answers = [Answer(request, self._vocabulary, self._stop) for request in requests]
        before = acting(self._model)
        worker = Worker(self._model, ROWS, len(answers))
        with eval_mode(self._model), torch.random.fork_rng(devices=[]):
            try:
                with worker.changed:
                    worker.add(answers)
                while any(answer.finish is None for answer in answers):
                    worker.round()
            finally:
                worker.batch.clear()
                set_acting(self._model, before)
        if failed := [answer for answer in answers if answer.finish == "error"]:
            raise LuthierError(f"{len(failed)} of {len(answers)} answers could not be sampled: {failed[0].why}")
        return [self._drawn(answer) for answer in answers]

    def _drawn(self, answer: Answer) -> Drawn:
        text = text_of(self._tokenizer, answer.ids, self._stops)
        return Drawn(tuple(answer.ids), text, str(answer.finish))
