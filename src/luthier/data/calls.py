"""Whose a token of a call is, the choice's of a tool or its arguments': one function for training and decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.example import Example, Message
from luthier.core.errors import LuthierError
from luthier.data.bad import BadRow
from luthier.data.ends import eos_of
from luthier.data.place import shared
from luthier.data.template import Template, has_template

NAME, KEY, VALUE, SAID = "toolq", "keyq", "valueq", "contentq"
"""Words that stand in a call for the template to be read by."""


@dataclass(frozen=True)
class CallFormat:
    """How a chat template writes a call: `before` NAME `between` ARGUMENTS `after`, an object of JSON."""

    before: str
    between: str
    after: str

    @classmethod
    def of(cls, tokenizer: Any, example: Example | None = None) -> CallFormat:
        """Measures a tokenizer's template with the variables of a row; raises `LuthierError` where it has no calls."""
        if not has_template(tokenizer):
            raise LuthierError("the tokenizer has no chat template, so nothing says how a call is written.")
        try:
            template = Template.of(example or Example(row=1), tokenizer).less(tools=[TOOL])
            one, said, two = (template.attempt(each) for each in (_asked(), _asked(SAID), _asked(calls=2)))
        except BadRow as reason:
            raise LuthierError(f"the chat template cannot be read: {reason}.") from None
        cut = None if one is None else _cut(one)
        if one is None or cut is None:
            raise LuthierError("the chat template writes no calls of functions whose arguments are an object of JSON.")
        name, begins, ends = cut
        before = _common_end(one[:name], _before(said)) if said is not None and _cut(said) is not None else one[:name]
        prompt = template.attempt(_asked()[:1], prompt=True) or ""
        before = before[-max(0, name - shared(prompt, one)) :].lstrip()
        tail = one[ends:].split(eos_of(tokenizer) or "\0")[0]
        after = tail[: shared(tail, two[_second(two) :])] if two is not None and _cut(two) else tail
        found = cls(before, one[name + len(NAME) : begins], after.rstrip())
        if not found.before or not found.between:
            raise LuthierError("the chat template does not set a tool's name apart from what stands around it.")
        return found

    def owner(self, text: str) -> str | None:
        """Returns whose the next token of an answer is: None of the choice of a tool, or the tool of the arguments.

        A tool has the token after its name is over (`between` has begun) up to what ends its call; all else, text
        without a call and the end of the turn included, is the choice's.
        """
        at = 0
        while True:
            start = text.find(self.before, at)
            close = -1 if start < 0 else text.find(self.between[0], start + len(self.before))
            if close < 0:
                return None
            name = text[start + len(self.before) : close]
            end = _end_of_object(text, close + len(self.between)) if text.startswith(self.between, close) else None
            if end is None or not text.startswith(self.after, end):
                return name
            at = end + len(self.after)

    def owners(self, ids: Sequence[int], tokenizer: Any) -> list[str | None]:
        """Returns whose each token of an answer is, from its tokens before it, as decoding tells it."""
        return [self.owner(text_so_far(ids[:count], tokenizer)) for count in range(len(ids))]


def text_so_far(ids: Sequence[int], tokenizer: Any) -> str:
    """Returns the text of tokens, special ones included."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string", "description": "A word."}}},
    },
}


def _asked(content: str = "", calls: int = 1) -> list[Message]:
    call = {"type": "function", "function": {"name": NAME, "arguments": {KEY: VALUE}}}
    made = [{"id": f"c1234567{number}", **call} for number in range(calls)]
    return [{"role": "user", "content": "a"}, {"role": "assistant", "content": content, "tool_calls": made}]


def _cut(text: str, first: bool = False) -> tuple[int, int, int] | None:
    """Where the name and the arguments of the last call (or the `first`) are: (name, begin, end)."""
    value = text.find(VALUE) if first else text.rfind(VALUE)
    begins = text.rfind("{", 0, max(0, value))
    name = text.rfind(NAME, 0, max(0, begins))
    end = _end_of_object(text, begins) if min(value, begins, name) >= 0 else None
    return None if end is None or not _is_asked(text[begins:end]) else (name, begins, end)


def _is_asked(text: str) -> bool:
    """Whether a text is the arguments that were asked for, as JSON."""
    try:
        return json.loads(text) == {KEY: VALUE}
    except (ValueError, RecursionError):
        return False


def _before(text: str) -> str:
    found = _cut(text)
    return text[: found[0]] if found else ""


def _second(text: str) -> int:
    """Where the arguments of the first of two calls end."""
    found = _cut(text, first=True)
    return found[2] if found else len(text)


def _common_end(first: str, second: str) -> str:
    length = shared(first[::-1], second[::-1])
    return first[len(first) - length :]


def _end_of_object(text: str, start: int) -> int | None:
    """Where an object of JSON that begins here ends; None while it does not."""
    if not text.startswith("{", start):
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None
