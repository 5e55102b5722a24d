"""The engine: requests with different adapters decoded together, on a thread of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from luthier.core.adapters.attach import NAME, detach, find_state, state_of
from luthier.core.adapters.control import tasks_by_adapter, use
from luthier.core.contracts.router import adapter_and_task
from luthier.core.errors import LuthierError, near
from luthier.core.storage.store import load
from luthier.engine.batch import Pooling
from luthier.engine.grammar import Compiled, Grammar, Grammars
from luthier.engine.job import Job, Vocabulary
from luthier.engine.request import Deliver, Request, Statistics, Ticket, refuse_wrong
from luthier.engine.servable import Trial, check_servable
from luthier.engine.worker import Worker


class Engine:
    """Decodes up to `rows` requests at once; `waiting` more may queue.

    Every row uses an adapter of its own, or none. Rows join and leave between two steps. The model belongs to the
    engine until `close`. A prompt and its answer have `max_length` tokens at most (None: as many as the model has
    positions). With `deterministic`, rows are decoded one by one, and each gets the same bits whatever else runs.
    Raises `LuthierError` for a model whose rows cannot share a batch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        adapters: Mapping[str, str | Path] = {},
        rows: int = 32,
        waiting: int = 128,
        max_length: int | None = None,
        deterministic: bool = False,
    ) -> None:
        if rows < 1 or waiting < 0 or (max_length is not None and max_length < 2):
            raise LuthierError(
                f"rows is {rows}, waiting {waiting} and max_length {max_length}; expected at least 1, 0 and 2."
            )
        if find_state(model) is not None:
            raise LuthierError("the model carries adapters already; give the engine the base, and the folders.")
        check_servable(model.eval())
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length: int | None = max_length if max_length is not None else positions
        self._model, self._vocabulary = model, Vocabulary.of(model, tokenizer)
        self._tokens = model.get_input_embeddings().num_embeddings
        self._grammars = Grammars(tokenizer, self._tokens, self._vocabulary.stops)
        self._trial, self._worker = Trial(model), Worker(model, rows, waiting, deterministic)
        self._names: dict[str, list[str]] = {}
        """The adapters, and the names that rows ask for each by: its own, or those of its tasks."""
        self._leaving: set[str] = set()
        for name, folder in adapters.items():
            self.load(name, folder)

    def start(self) -> None:
        """Starts the thread that runs the model."""
        self._worker.start()

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        """Queues a request; `deliver` gets its pieces on the engine's thread, the last one with a `finish`.

        `deliver` should return at once, and must not call the engine. Raises `Busy` if the queue is full or the
        engine stops, and `LuthierError` for what cannot be served: settings out of range, an unknown adapter, token
        ids that the model lacks, a prompt that leaves no room for an answer.
        """
        return self.submit_all([request], [deliver])[0]

    def submit_all(self, requests: Sequence[Request], delivers: Sequence[Deliver]) -> list[Ticket]:
        """Queues requests, all or none, as `submit` queues one; more than there are `places` raise `LuthierError`."""
        for prompt in {id(request.prompt): request.prompt for request in requests}.values():
            if wrong := [token for token in prompt if not 0 <= token < self._tokens]:
                raise LuthierError(f"token id {wrong[0]} is none of the model's {self._tokens}.")
        jobs = [self._job(request, deliver) for request, deliver in zip(requests, delivers, strict=True)]
        with self._worker.changed:
            for name in {name for request in requests for name in request.adapters()}:
                self._refuse_adapter(name)
            self._worker.add(jobs)
        return [Ticket(partial(self._worker.cancel, job)) for job in jobs]

    def between(self, command: Callable[[], None]) -> None:
        """Runs a command on the engine's thread between two steps, where the model is its own, and waits for it.

        What it switches on the model stands for no row that is decoded. Raises what the command raises.
        """
        context = copy_context()
        self._worker.between(lambda: context.run(command))

    @property
    def model(self) -> Any:
        """The model, which only `between` may touch while the engine runs."""
        return self._model

    @property
    def places(self) -> int:
        """Requests that may run or wait at a time."""
        return self._worker.places

    def compiled(self, grammar: Grammar) -> Compiled:
        """Compiles what an answer has to match, for requests of this engine; takes a moment, on the caller's thread.
        Raises `LuthierError` for a grammar that is wrong."""
        return self._grammars.compiled(grammar)

    def embed(self, prompts: Sequence[Sequence[int]], adapter: str | None, pooling: Pooling) -> list[list[float]]:
        """Returns a vector of unit length for each prompt, between two steps of what runs; waits for it.

        A vector is pooled from the last layer's hidden states: those of the last token, or their mean.
        """
        found: list[list[float]] = []

        def command() -> None:
            self._refuse_adapter(adapter)
            found.extend(self._worker.batch.embed(prompts, adapter, pooling))

        for prompt in prompts:
            self._refuse_long(len(prompt), 0)
        self._worker.between(command)
        return found

    def _job(self, request: Request, deliver: Deliver) -> Job:
        refuse_wrong(request)
        request.shaping.check(self._tokens)
        return Job(request, deliver, self._vocabulary, self._most(request))

    def _most(self, request: Request) -> int:
        """How many tokens the answer may have."""
        if self.max_length is None:
            return request.max_tokens
        self._refuse_long(len(request.prompt), min(request.max_tokens, 1))
        return min(request.max_tokens, self.max_length - len(request.prompt))

    def _refuse_long(self, tokens: int, room: int) -> None:
        if self.max_length is not None and tokens + room > self.max_length:
            raise LuthierError(
                f"the prompt has {tokens} tokens, and prompt and answer may have {self.max_length} together; "
                "shorten it."
            )

    def _refuse_adapter(self, name: str | None) -> None:
        if name is None:
            return
        if adapter_and_task(name)[0] in self._leaving:
            raise LuthierError(f"adapter {adapter_and_task(name)[0]!r} is being unloaded.")
        if name not in (known := [each for own in self._names.values() for each in own]):
            there = ", ".join(known) or "none but the base"
            raise LuthierError(f"no adapter named {name!r}{near(name, known)} There are: {there}.")

    def load(self, name: str, folder: str | Path) -> None:
        """Loads an adapter between two steps; raises `LuthierError` for a taken or unfit name, for one that
        `luthier.load` refuses, and for one that would act on the rows of others."""
        if not NAME.fullmatch(name):
            raise LuthierError(f"{name!r} cannot name an adapter; use letters, digits, '_' and '-' (at most 64).")
        context = copy_context()  # of the caller, who may ask for signatures
        self._worker.between(lambda: context.run(self._load, name, folder))

    def _load(self, name: str, folder: str | Path) -> None:
        if name in self._names:
            raise LuthierError(f"an adapter named {name!r} is loaded already; unload it first.")
        load(self._model, folder, name)
        tasks = tasks_by_adapter(state_of(self._model), name)
        asked = [f"{name}:{task}" for task in tasks] or [name]
        try:
            self._trial(asked[0])
        except BaseException:
            detach(self._model, name)
            raise
        use(self._model, [])  # until a row asks for it; the next one to load would have to silence all that act
        with self._worker.changed:
            self._names[name] = asked

    def unload(self, name: str) -> None:
        """Refuses new requests for an adapter, waits for those that there are, and takes it off.

        One that goes by tasks goes whole, by whichever of its names.
        """
        worker, name = self._worker, adapter_and_task(name)[0]
        with worker.changed:
            self._refuse_adapter(self._names[name][0] if name in self._names else name)
            self._leaving.add(name)
            worker.changed.wait_for(lambda: not worker.live[name] or worker.closed)
        try:
            worker.between(lambda: self._unload(name))
        finally:
            with worker.changed:
                self._leaving.discard(name)

    def _unload(self, name: str) -> None:
        detach(self._model, name)
        with self._worker.changed:
            del self._names[name]

    def adapters(self) -> list[str]:
        """Returns the names that can be asked for, in the order of loading: of an adapter that goes by the task of a
        row `adapter:task` for each."""
        with self._worker.changed:
            return [each for name, own in self._names.items() if name not in self._leaving for each in own]

    def statistics(self) -> Statistics:
        """Returns what was done so far, and what is under way."""
        return replace(self._worker.statistics(), adapters=len(self._names))

    def drain(self, seconds: float) -> bool:
        """Takes no more requests and waits for the rest; whether they ended in time."""
        worker = self._worker
        with worker.changed:
            worker.draining = True
            return worker.changed.wait_for(lambda: not worker.under_way, seconds)

    def close(self) -> None:
        """Ends what is left with finish cancelled, and the thread; the model, with its adapters, is free again."""
        self._worker.close()
