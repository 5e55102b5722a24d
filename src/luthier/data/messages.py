"""The turns of a conversation, beyond role and content: calls of functions, and thoughts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from luthier.core.contracts.example import Message

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names under which templates read what a model thought before an answer; rows have the first."""
OPENING = re.compile(r"<(think|thinking|thought|reasoning)>")
"""What opens a thought that stands in the content itself."""
MARK = re.compile(r"</?(?:think|thinking|thought|reasoning)>")
CLOSED = re.compile(r"(?!\s*<).*?^[ \t]*</(?:think|thinking|thought|reasoning)>[ \t]*$", re.DOTALL | re.MULTILINE)
"""A thought that the prompt for generation has opened: its end stands on a line of its own."""


def calls_of(message: Message) -> list[dict[str, Any]]:
    """`{"name", "arguments"}` of every function that a turn calls, with or without OpenAI's wrapper around it."""
    return [call.get("function") or call for call in message.get("tool_calls") or []]


def decoded(messages: list[Message]) -> list[Message]:
    """The turns with every call's arguments as an object, where they are a string that holds one (OpenAI's form)."""
    return _with_arguments(messages, _object)


def encoded(messages: list[Message]) -> list[Message]:
    """Returns the turns with every call's arguments as a string of JSON, as some templates want them."""
    return _with_arguments(messages, lambda value: value if isinstance(value, str) else as_json(value))


def as_json(value: Any) -> str:
    """JSON as chat templates write it: no character is escaped that need not be."""
    return json.dumps(value, ensure_ascii=False)


def _object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value or "{}")
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def _with_arguments(messages: list[Message], change: Any) -> list[Message]:
    return [{**m, "tool_calls": [_changed(c, change) for c in m["tool_calls"]]} if calls_of(m) else m for m in messages]


def _changed(call: dict[str, Any], change: Any) -> dict[str, Any]:
    if call.get("function"):
        return {**call, "function": _changed(call["function"], change)}
    return {**call, "arguments": change(call.get("arguments", {}))}


def thought_of(message: Message) -> str:
    """Returns what a turn says it thought, beside its content; empty where it says nothing."""
    return next((message[name] for name in THOUGHTS if message.get(name)), "")


def split_thought(content: str) -> tuple[str, str]:
    """Splits a content into (its thoughts, the rest of it)."""
    thoughts, rest, at = [], [], 0
    open_ended: set[str] = set()
    for opening in OPENING.finditer(content):
        name = opening[1]
        end = -1 if opening.start() < at or name in open_ended else content.find(f"</{name}>", opening.end())
        if end >= 0:
            rest.append(content[at : opening.start()])
            thoughts.append(content[opening.end() : end])
            at = end + len(f"</{name}>")
        elif opening.start() >= at:
            open_ended.add(name)
    return "".join(thoughts), "".join(rest) + content[at:]


def opens_with_thought(content: str) -> bool:
    """Whether a content begins with a thought."""
    opening = OPENING.match(content.lstrip())
    return opening is not None and f"</{opening[1]}>" in content


def loose_mark(content: str) -> str | None:
    """Returns the first mark of a thought that stands within words, where it bounds no thought; None without one."""
    if MARK.search(content) is None:
        return None
    rest = split_thought(content)[1]
    closed = CLOSED.match(rest)
    found = MARK.search(rest, closed.end() if closed else 0)
    return found[0] if found else None


def leaves(value: Any) -> Iterator[Any]:
    """Yields every key and every plain value within the arguments of a call."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from leaves(each)
    else:
        yield value
