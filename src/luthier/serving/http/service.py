"""The service behind the server: its engine, its models by name, and what it may load."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.adapters.attach import NAME
from luthier.core.contracts.router import adapter_and_task
from luthier.core.errors import LuthierError, near
from luthier.core.paths import path_of
from luthier.core.storage.folder import adapter_at
from luthier.core.storage.format import read
from luthier.data import calls
from luthier.data.pictures import seen_in
from luthier.data.template import has_template
from luthier.engine.grammar import Compiled, Grammar
from luthier.engine.request import Request
from luthier.engine.turns import Turns
from luthier.models import Chat
from luthier.models.seeing import eyes_of, seeing_as
from luthier.serving.http.answers import Shape
from luthier.serving.http.calls import CallFormat
from luthier.serving.http.claims import Claim, Claims, lane
from luthier.serving.http.log import AnswerLog
from luthier.serving.http.metrics import Metrics, Watch
from luthier.serving.http.prompts import chat_ids, text_ids
from luthier.serving.http.refusal import RETRY, Refusal, refusal_of
from luthier.serving.http.schema import MOST_CHOICES, ChatBody, CompletionBody, Sampled
from luthier.serving.http.stream import Flight
from luthier.serving.http.wants import CallFormats, Wants, echoes, grammar_of, wants_of

if TYPE_CHECKING:
    from luthier.engine.engine import Engine
    from luthier.serving.training_api.service import TrainingService


LONGEST = 2**17
"""Tokens of a prompt, for a model that does not say how long its texts may be."""
UNBOUNDED = 2**12
"""The most tokens of an answer without a bound, by a model that states none."""


class Service:
    """An engine under names. `base` is what the bare model is called; adapters go by their own names.

    `trained` are the folders of the engine's adapters, which say how conversations were rendered in training.
    `per_client` is how many places of the engine one address may hold (None: all). `log` is a file that every
    complete answer is appended to. `arguments` names the adapter that writes the arguments of a tool, by the tool's
    name, in answers of `selection` (None: the base) to requests with tools. Raises `LuthierError` where the chat
    template writes no calls by which they could take turns.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        base: str,
        adapters_folder: str | Path | None = None,
        trained: Mapping[str, str | Path] = {},
        per_client: int | None = None,
        log: str | Path | None = None,
        arguments: Mapping[str, str] = {},
        selection: str | None = None,
    ) -> None:
        self.log = None if log is None else AnswerLog(Path(log))
        self.claims = Claims(engine.places, per_client)
        self.engine, self.base = engine, base
        self.tokenizer = seeing_as(copy.deepcopy(tokenizer), tokenizer)  # the engine's thread uses the other one
        self.folder = None if adapters_folder is None else path_of(adapters_folder).resolve()
        self.metrics = Metrics(engine)
        self.created = int(time.time())
        self.draining = False
        self.training: TrainingService | None = None
        """What trains on the same engine, where anything does."""
        self._tokenizing = asyncio.Lock()
        self._chats: dict[str, Chat] = {}
        self._formats = CallFormats()
        for name, folder in trained.items():
            self.hear(name, folder)
        self._selection, self._arguments = selection, dict(arguments)
        self._turns: Turns | None = None
        if arguments:
            words = self._speaks(selection)[0]
            self._turns = Turns(calls.CallFormat.of(words), copy.deepcopy(words), self._arguments)

    def refuse_when_draining(self) -> None:
        """Raises 503 when the server is about to stop."""
        if self.draining:
            raise Refusal(503, "the server is stopping and takes nothing new.", code="draining", headers=RETRY)

    # --- models ---

    def models(self) -> list[dict[str, Any]]:
        """Returns the base and every adapter, as models."""
        return [self.model(name) for name in (self.base, *self.engine.adapters())]

    def model(self, name: str) -> dict[str, Any]:
        """One of them, and whether messages may have pictures; raises 404 with near names."""
        adapter = self.adapter_of(name)
        parent = {} if adapter is None else {"parent": self.base}
        told = {"id": name, "object": "model", "created": self.created, "owned_by": "luthier", **parent}
        return told | {"pictures": eyes_of(self.tokenizer) is not None}

    async def detail(self, name: str) -> dict[str, Any]:
        """One of them, with how long its texts may be, whether it has a chat template, whether calls of tools can be
        read from its answers (null where they stand in the content), and which adapters write arguments in them."""
        told, adapter = self.model(name), self.adapter_of(name)
        tokenizer, variables = self._speaks(adapter)
        async with self._tokenizing:
            written = await asyncio.to_thread(self._formats.of, tokenizer, variables)
        return told | {
            "max_model_len": self.engine.max_length,
            "chat_template": has_template(tokenizer),
            "tool_calls": None if written is None else {"opening": written.opening, "closing": written.closing},
            "arguments": self._arguments if adapter == self._selection else {},
        }

    def adapter_of(self, name: str) -> str | None:
        """Returns the adapter that a model's name means, None for the base."""
        if name == self.base:
            return None
        names = self.engine.adapters()
        if name not in names:
            known = [self.base, *names]
            message = f"there is no model {name!r:.100}{near(name, known)} There are: {', '.join(known)}."
            raise Refusal(404, message, param="model", code="model_not_found")
        return name

    # --- answers ---

    async def tokens(self, texts: Sequence[Any], client: str) -> list[list[int]]:
        """The token ids of a client's texts, beside the loop: long texts take their time."""
        most = self.engine.max_length or LONGEST
        async with lane(client), self._tokenizing:
            return await asyncio.to_thread(lambda: [text_ids(text, self.tokenizer, most) for text in texts])

    async def spoken(self, body: ChatBody, client: str) -> tuple[list[int], Wants]:
        """The token ids of a client's conversation, rendered as in the training of the adapter that is to answer, and
        what is wanted of the answers."""
        adapter = self.adapter_of(body.model)
        async with lane(client), self._tokenizing:
            prompt, written, grammar = await asyncio.to_thread(lambda: self._rendered(body, adapter))
        param = "response_format" if grammar == body.response_format else "tools"
        wants = wants_of(body, written, await self._compiled(grammar, param), self.tokenizer)
        takes_turns = adapter == self._selection and body.shown_tools()
        return prompt, dataclasses.replace(wants, turns=self._turns) if takes_turns else wants

    def _rendered(self, body: ChatBody, adapter: str | None) -> tuple[list[int], CallFormat | None, Grammar | None]:
        tokenizer, variables = self._speaks(adapter)
        ids = chat_ids(body, tokenizer, self.engine.max_length or LONGEST, variables)
        written = self._formats.of(tokenizer, variables) if body.shown_tools() else None
        return ids, written, grammar_of(body, written, tokenizer)

    def _speaks(self, adapter: str | None) -> tuple[Any, Mapping[str, Any]]:
        """The tokenizer with the chat template of an adapter, and the variables of its training."""
        chat, tokenizer = self._chats.get(adapter_and_task(adapter or "")[0]), self.tokenizer
        if chat is not None and chat.template != tokenizer.chat_template:
            tokenizer = seeing_as(copy.copy(tokenizer), tokenizer)
            tokenizer.chat_template = chat.template
        return tokenizer, {} if chat is None else chat.variables

    async def completed(self, body: CompletionBody, client: str) -> tuple[list[list[int]], Wants]:
        """The token ids of a completion's prompts, and what is wanted of the answers."""
        prompts = await self.tokens(body.prompt, client)
        texts = echoes(body.prompt, self.tokenizer) if body.echo else ()
        return prompts, Wants(await self._compiled(body.response_format), echo=texts)

    async def _compiled(self, grammar: Grammar | None, param: str = "response_format") -> Compiled | None:
        """Compiles a grammar, which `param` asked for, beside the loop; raises `Refusal` for one that is wrong."""
        if grammar is None:
            return None
        try:
            return await asyncio.to_thread(self.engine.compiled, grammar)
        except LuthierError as error:
            raise Refusal(400, f"{param}: {error}", param=param, code="invalid_value") from None

    def hear(self, adapter: str, folder: str | Path) -> None:
        """Renders conversations with an adapter as it was trained; says so where that is not as the base would."""
        try:
            chat = Chat.of(read(Path(folder)))
        except LuthierError:  # what loads without its spec says nothing of conversations
            chat = None
        if chat is None:
            return
        self._chats[adapter] = chat
        if chat.template != self.tokenizer.chat_template:
            warnings.warn(
                f"adapter {adapter!r} was trained with another chat template than the base's; its prompts are rendered "
                "by its own.",
                stacklevel=2,
            )

    def claimed(self, client: str, body: Sampled, prompts: int) -> Claim:
        """Returns the places of the answers to so many prompts, all at once, before any of them is tokenised."""
        if prompts * body.n > MOST_CHOICES:
            message = f"{prompts} prompts with {body.n} answers each; at most {MOST_CHOICES} answers a call."
            raise Refusal(400, message, param="n", code="invalid_value")
        return self.claims.take(client, prompts * body.n)

    def submit(
        self,
        body: Sampled,
        prompts: Sequence[list[int]],
        most: int | None,
        logprobs: int | None,
        claim: Claim,
        wants: Wants,
    ) -> Flight:
        """`body.n` answers to each prompt, of at most `most` tokens (None: as many as the model has room for)."""
        self.refuse_when_draining()
        requests = [
            Request(
                prompt=tuple(prompt),
                adapter=self.adapter_of(body.model),
                max_tokens=(self.engine.max_length or UNBOUNDED) if most is None else most,
                temperature=body.temperature,
                top_p=body.top_p,
                seed=None if body.seed is None else _seed(body.seed, number * body.n + i),
                stop=(*body.stop, *wants.stop),
                logprobs=logprobs,
                shaping=body.shaping(),
                grammar=wants.grammar,
                shown=wants.shown,
                echo=wants.echo[number] if wants.echo else None,
                turns=wants.turns,
                seen=seen_in(prompt),
            )
            for number, prompt in enumerate(prompts)
            for i in range(body.n)
        ]
        try:
            flight = Flight(self.engine, requests, Watch(self.metrics), claim.over)
            claim.kept = True
            return flight
        except LuthierError as error:
            self.refuse_when_draining()  # it may have begun meanwhile
            raise refusal_of(error) from error

    def logs(self, flight: Flight, answers: Shape, prompts: Callable[[], Sequence[Any]]) -> None:
        """Writes the complete answers of a call to the log once they have ended, where there is one."""
        if (log := self.log) is not None:
            flight.ended.append(lambda: log.write(answers, prompts()))

    # --- adapters ---

    async def load(self, name: str, path: str) -> dict[str, Any]:
        """Loads an adapter from below the adapters' folder, under a new name."""
        self.refuse_when_draining()
        self.refuse_unless_managed()
        if not NAME.fullmatch(name):
            message = f"{name!r:.100} cannot name an adapter; use letters, digits, '_' and '-' (at most 64)."
            raise Refusal(400, message, param="name", code="invalid_value")
        folder = self.inside(path)
        if name in (self.base, *(adapter_and_task(each)[0] for each in self.engine.adapters())):
            raise Refusal(409, f"there is a model {name!r} already.", param="name", code="name_taken")
        try:
            await asyncio.to_thread(self.engine.load, name, folder)
        except LuthierError as error:
            raise Refusal(400, str(error), param="path", code="invalid_adapter") from error
        self.hear(name, folder)
        asked = (each for each in self.engine.adapters() if adapter_and_task(each)[0] == name)
        return self.model(next(asked, name))

    async def unload(self, name: str) -> dict[str, Any]:
        """Takes an adapter out, once its requests have ended."""
        self.refuse_unless_managed()
        if self.adapter_of(name) is None:
            raise Refusal(400, f"{name!r} is the base; only adapters can be unloaded.", code="invalid_value")
        if self._turns is not None and name in (self._selection, *self._arguments.values()):
            raise Refusal(400, f"{name!r} takes turns with others in calls of tools; it stays.", code="invalid_value")
        await asyncio.to_thread(self.engine.unload, name)
        self._chats.pop(adapter_and_task(name)[0], None)
        return {"id": name, "object": "model", "deleted": True}

    def refuse_unless_managed(self) -> None:
        """Raises 403 where adapters stay as they are."""
        if self.folder is None:
            message = "adapters cannot be loaded or unloaded here; start the server with --adapters-folder DIR."
            raise Refusal(403, message, code="adapters_fixed")

    def inside(self, path: str) -> Path:
        """The adapter's folder that `path` means; it and its files must lie in the adapters' folder, links resolved."""
        assert self.folder is not None
        try:
            found = (self.folder / path).resolve()
            folder = adapter_at(found) if found.is_relative_to(self.folder) else None
            folders = [] if folder is None else [folder.resolve()]
            places = [found, *folders, *(each.resolve() for each in folders for each in each.iterdir())]
        except (OSError, ValueError, RuntimeError):  # NUL, too long, a circle of links
            folders, places = [], []
        if not all(place.is_relative_to(self.folder) for place in places):
            raise Refusal(403, "path: it does not lie in the adapters' folder.", param="path", code="outside_folder")
        if not folders:
            raise Refusal(400, f"path: {path!r:.200} holds no adapter.", param="path", code="invalid_adapter")
        return folders[0]


def _seed(seed: int, index: int) -> int:
    """The seed of an answer: the first has the one asked for, the others those after it."""
    return seed if index == 0 else (seed + index) % 2**63
