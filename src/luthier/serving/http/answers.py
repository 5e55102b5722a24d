"""From pieces of the engine to the answers of the two endpoints, whole or as events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.engine.request import Chunk, Token

DONE = "data: [DONE]\n\n"


def event(value: dict[str, Any]) -> str:
    """Returns a server-sent event."""
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


@dataclass
class Choice:
    """One answer as it grows."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    generated: int = 0
    """The number of tokens so far."""
    begun: bool = False

    def add(self, chunk: Chunk) -> None:
        """Takes in the next piece."""
        self.text += chunk.text
        self.tokens += chunk.tokens
        self.finish = chunk.finish
        self.generated = max(self.generated, chunk.generated)
        self.begun = True


@dataclass
class Shape(ABC):
    """How an endpoint tells answers: `choices[index]` as whole answers, or what a piece adds to one."""

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
    def part(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """Returns an event: what `piece` adds to choice `index`, which has not taken it in yet."""

    @abstractmethod
    def last(self) -> dict[str, Any]:
        """Returns the event that ends a stream with its token counts."""

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """Returns what every object of this answer begins with."""
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    def usage(self) -> dict[str, int]:
        """Token counts; a prompt that got several answers counts once."""
        generated = sum(choice.generated for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
        }


class Chat(Shape):
    """POST /v1/chat/completions."""

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.tokens),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(self.choices)
        ]
        return self.head("chatcmpl-", "chat.completion") | {"choices": choices, "usage": self.usage()}

    def part(self, index: int, chunk: Chunk) -> dict[str, Any]:
        opening = {} if self.choices[index].begun else {"role": "assistant"}
        choice = {
            "index": index,
            "delta": opening | ({"content": chunk.text} if chunk.text or opening else {}),
            "logprobs": self._logprobs(chunk.tokens),
            "finish_reason": chunk.finish,
        }
        return self.head("chatcmpl-", "chat.completion.chunk") | {"choices": [choice]}

    def last(self) -> dict[str, Any]:
        return self.head("chatcmpl-", "chat.completion.chunk") | {"choices": [], "usage": self.usage()}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        told = [
            _chat_token(t.text, t.logprob) | {"top_logprobs": [_chat_token(text, lp) for _, text, lp in t.top]}
            for t in tokens
        ]
        return {"content": told, "refusal": None}


def _chat_token(text: str, logprob: float) -> dict[str, Any]:
    """A token; its bytes are not told where it is a part of a character."""
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


class Completion(Shape):
    """POST /v1/completions."""

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(i, choice.text, choice.tokens, choice.finish, 0) for i, choice in enumerate(self.choices)
        ]
        return self.head("cmpl-", "text_completion") | {"choices": choices, "usage": self.usage()}

    def part(self, index: int, chunk: Chunk) -> dict[str, Any]:
        before = sum(len(token.text) for token in self.choices[index].tokens)
        choice = self._choice(index, chunk.text, chunk.tokens, chunk.finish, before)
        return self.head("cmpl-", "text_completion") | {"choices": [choice]}

    def last(self) -> dict[str, Any]:
        return self.head("cmpl-", "text_completion") | {"choices": [], "usage": self.usage()}

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
        "top_logprobs": [{text: lp for _, text, lp in token.top} for token in tokens],
        "text_offset": ends[:-1],
    }
