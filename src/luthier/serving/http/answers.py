"""From pieces of the engine to the answers of the two endpoints, whole or as events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from luthier.engine.request import Chunk, Token
from luthier.serving.http.callreader import Call, CallReader, Piece

DONE = "data: [DONE]\n\n"


def event(value: dict[str, Any]) -> str:
    """Returns a server-sent event."""
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


@dataclass
class Choice:
    """One answer as it grows."""

    reader: CallReader | None = None
    """What reads calls out of it; None: all of it is text."""
    raw: str = ""
    """All that was generated."""
    text: str = ""
    """What is not a call."""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    generated: int = 0
    """The number of tokens so far."""
    begun: bool = False
    offset: int = 0
    """Characters of tokens so far."""

    def add(self, chunk: Chunk) -> list[Piece]:
        """Takes in the next part, and returns what it brings."""
        pieces = self._read(chunk)
        self.raw += chunk.text
        self.text += "".join(piece.text for piece in pieces)
        self.tokens += chunk.tokens
        self.offset += sum(len(token.text) for token in chunk.tokens)
        self.finish = chunk.finish
        self.generated = max(self.generated, chunk.generated)
        self.begun = True
        return pieces

    def _read(self, chunk: Chunk) -> list[Piece]:
        if self.reader is None:
            return [Piece(chunk.text)] if chunk.text else []
        return self.reader.add(chunk.text) + (self.reader.rest() if chunk.finish else [])

    @property
    def calls(self) -> list[Call]:
        """The calls that it makes."""
        return [] if self.reader is None else self.reader.calls

    @property
    def reason(self) -> str | None:
        """Why it ended, as chats tell it."""
        return "tool_calls" if self.calls and self.finish == "stop" else self.finish

    def message(self) -> dict[str, Any]:
        """Returns it as a turn of a conversation."""
        called = {"tool_calls": [call.told() for call in self.calls]} if self.calls else {}
        return {"role": "assistant", "content": self.text or (None if called else ""), **called}


@dataclass
class Shape(ABC):
    """How an endpoint tells answers: `choices[index]` as whole answers, or what a piece adds to one."""

    end: ClassVar[str] = DONE
    """What closes a stream."""

    model: str
    logprobs: bool
    prompt_tokens: int
    choices: list[Choice]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not a stream."""

    @abstractmethod
    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        """Returns the events of a stream for what `chunk` adds to choice `index`, which takes it in."""

    def first(self) -> list[dict[str, Any]]:
        """Returns the events before any part."""
        return []

    @abstractmethod
    def last(self, usage: bool) -> list[dict[str, Any]]:
        """Returns the events that end a stream, with token counts where they are wanted."""

    def event(self, value: dict[str, Any]) -> str:
        """Returns an event as it is sent."""
        return event(value)

    def broken(self, error: dict[str, Any]) -> dict[str, Any]:
        """Returns the last event of a stream that failed."""
        return error

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """Returns what every object of this answer begins with."""
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    @property
    def generated(self) -> int:
        """Tokens of all answers."""
        return sum(choice.generated for choice in self.choices)

    def usage(self) -> dict[str, int]:
        """Token counts; a prompt that got several answers counts once."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt_tokens + self.generated,
        }


class Chat(Shape):
    """POST /v1/chat/completions."""

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": choice.message() | {"refusal": None},
                "logprobs": self._logprobs(choice.tokens),
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(self.choices)
        ]
        return self.head("chatcmpl-", "chat.completion") | {"choices": choices, "usage": self.usage()}

    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        choice = self.choices[index]
        begun = choice.begun
        deltas = [_delta(piece) for piece in choice.add(chunk)]
        if not begun:
            deltas[:1] = [{"role": "assistant"} | (deltas[0] if deltas else {"content": ""})]
        if not deltas and (chunk.finish or (self.logprobs and chunk.tokens)):
            deltas = [{}]
        told = [{"index": index, "delta": each, "logprobs": None, "finish_reason": None} for each in deltas]
        if told:
            told[0]["logprobs"] = self._logprobs(chunk.tokens)
            told[-1]["finish_reason"] = choice.reason
        return [self.head("chatcmpl-", "chat.completion.chunk") | {"choices": [each]} for each in told]

    def last(self, usage: bool) -> list[dict[str, Any]]:
        head = self.head("chatcmpl-", "chat.completion.chunk")
        return [head | {"choices": [], "usage": self.usage()}] if usage else []

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        told = [
            _chat_token(t.text, t.logprob) | {"top_logprobs": [_chat_token(text, lp) for _, text, lp in t.top]}
            for t in tokens
        ]
        return {"content": told, "refusal": None}


def _delta(piece: Piece) -> dict[str, Any]:
    """What a piece adds to a message."""
    if piece.call is None:
        return {"content": piece.text}
    opened = {"id": piece.id, "type": "function"} if piece.id else {}
    function = ({"name": piece.name} if piece.name else {}) | {"arguments": piece.arguments}
    return {"tool_calls": [{"index": piece.call, **opened, "function": function}]}


def _chat_token(text: str, logprob: float | None) -> dict[str, Any]:
    """A token; its bytes are not told where it is a part of a character."""
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


class Completion(Shape):
    """POST /v1/completions."""

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(i, choice.text, choice.tokens, choice.finish, 0) for i, choice in enumerate(self.choices)
        ]
        return self.head("cmpl-", "text_completion") | {"choices": choices, "usage": self.usage()}

    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        before = self.choices[index].offset
        self.choices[index].add(chunk)
        choice = self._choice(index, chunk.text, chunk.tokens, chunk.finish, before)
        return [self.head("cmpl-", "text_completion") | {"choices": [choice]}]

    def last(self, usage: bool) -> list[dict[str, Any]]:
        head = self.head("cmpl-", "text_completion")
        return [head | {"choices": [], "usage": self.usage()}] if usage else []

    def _choice(
        self, index: int, text: str, tokens: Sequence[Token], finish: str | None, before: int
    ) -> dict[str, Any]:
        """One choice; `before` is how many characters of tokens came earlier."""
        logprobs = _completion_logprobs(tokens, before) if self.logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _completion_logprobs(tokens: Sequence[Token], before: int) -> dict[str, Any]:
    ends = [before]
    for token in tokens:
        ends.append(ends[-1] + len(token.text))
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None if token.logprob is None else {text: lp for _, text, lp in token.top} for token in tokens
        ],
        "text_offset": ends[:-1],
    }
