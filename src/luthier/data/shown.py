"""Whether what a row says stands in what its template renders.

Templates trim, quote and escape, so a text counts as rendered when its characters stand there in their order: white
space aside, as it is or as a JSON string holds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from luthier.core.contracts.example import Message
from luthier.data.bad import BadRow
from luthier.data.messages import (
    THOUGHTS,
    as_json,
    calls_of,
    decoded,
    encoded,
    leaves,
    loose_mark,
    split_thought,
    thought_of,
)
from luthier.data.pictures import MARK
from luthier.data.template import Template

DOCUMENT = ("title", "text", "content", "contents", "snippet")
"""Keys of a document that hold what it says."""


def squeezed(text: str) -> str:
    """Returns the text without white space."""
    return "".join(text.split())


def stands(value: Any, there: str) -> bool:
    """Returns whether a plain value stands in a squeezed text."""
    if isinstance(value, str):
        forms = [value, as_json(value)[1:-1], json.dumps(value)[1:-1]]
    else:
        forms = [json.dumps(value), str(value)]
    return any(squeezed(form) in there for form in forms)


def missing(message: Message, there: str) -> list[tuple[str, str]]:
    """Finds (what it is, its text) of everything that a turn says and that the squeezed text `there` lacks."""
    return [(what, str(value)) for what, value in _said(message, there) if not stands(value, there)]


def _said(message: Message, there: str) -> Iterator[tuple[str, Any]]:
    content = message.get("content") or ""
    if stands(content, there):
        thought, rest = "", ""
    else:
        thought, rest = split_thought(content)
    yield "thought", thought
    yield "thought", thought_of(message)
    for piece in rest.split(MARK):
        yield "content", piece
    for call in calls_of(message):
        yield "call of a function", call.get("name") or ""
        for leaf in leaves(call.get("arguments", {})):
            yield "argument of a call", leaf


def idle(template: Template, messages: list[Message], turn: int, text: str) -> list[tuple[str, str]]:
    """The thought of a turn, as in `missing`, where `text`, the render of all turns, is the same without it: its words
    may stand elsewhere."""
    message = messages[turn]
    thought, (inner, rest) = thought_of(message), split_thought(message.get("content") or "")
    if thought:
        bare = {key: value for key, value in message.items() if key not in THOUGHTS}
    elif inner and not stands(message["content"], squeezed(text)):
        bare = {**message, "content": rest}
    else:
        return []
    same = template.attempt([*messages[:turn], bare, *messages[turn + 1 :]]) == text
    return [("thought", thought or inner)] if same else []


def lacks(message: Message, index: int, found: list[tuple[str, str]]) -> BadRow:
    """The reason why a turn cannot be used of which the template leaves out `found`; the same words for every row."""
    what, hint = found[0][0], ""
    if what == "thought" and thought_of(message):
        hint = "; use a template that renders reasoning_content, or put the thought into the content"
    elif message["role"] == "assistant":
        hint = "; nothing of it would be learned"
    return BadRow(f"the chat template does not render the {what} of message {index + 1} ({message['role']}){hint}")


def check_given(template: Template, messages: list[Message], text: str) -> dict[str, int]:
    """Raises `BadRow` where the template leaves out the tools or documents of a row; notes of variables unread."""
    there = squeezed(text)
    if template.tools and (text == template.less(tools=None).attempt(messages) or not _all(_tools(template), there)):
        raise BadRow(
            "the chat template does not render the row's tools, so calls would be learned without them; use a "
            "template with tools, or take the column out"
        )
    if template.documents and (
        text == template.less(documents=None).attempt(messages) or not _all(_documents(template), there)
    ):
        raise BadRow(
            "the chat template does not render the row's documents, so answers would be learned without them; use a "
            "template with documents, or put them into a message"
        )
    return {f"the chat template never reads {name!r} of chat_template_kwargs": 1 for name in template.unread()}


def _all(values: Iterator[Any], there: str) -> bool:
    return all(stands(value, there) for value in values)


def _tools(template: Template) -> Iterator[Any]:
    for tool in template.tools or []:
        function = tool.get("function") or tool
        yield from (function[key] for key in ("name", "description") if function.get(key))


def _documents(template: Template) -> Iterator[Any]:
    for document in template.documents or []:
        yield from (document[key] for key in DOCUMENT if isinstance(document.get(key), str))


def settled(template: Template, messages: list[Message]) -> list[Message]:
    """The turns with the arguments of calls in the form that the template makes objects of: decoded, or as strings
    for a template that pastes them."""
    objects = decoded(messages)
    if not any(calls_of(message) for message in messages):
        return objects
    for turns in (objects, encoded(messages)):
        text = template.attempt(turns)
        if text is not None and not _misread(text, objects):
            return turns
    return objects


def _misread(text: str, messages: list[Message]) -> bool:
    """Whether a call's arguments stand in a text as a quoted string, or as Python writes them."""
    there = squeezed(text)
    for call in (call for message in messages for call in calls_of(message)):
        arguments = call.get("arguments")
        if not isinstance(arguments, dict) or not arguments:
            continue
        once = as_json(arguments)
        twice = as_json(once)
        quoted = {squeezed(each[1:-1]) for each in (twice, as_json(twice))}
        wrong = {*quoted, squeezed(repr(arguments))} - {squeezed(once)}
        if any(form in there for form in wrong):
            return True
    return False


def check_calls(text: str, messages: list[Message]) -> None:
    """Raises `BadRow` where arguments would be learned as a quoted string."""
    if _misread(text, decoded(messages)):
        raise BadRow("the chat template writes the arguments of a call as a quoted string, not as an object")


def check_marks(template: Template, messages: list[Message], text: str) -> None:
    """Raises `BadRow` where a template takes a word of an answer for the bound of a thought, and renders it so."""
    for number, message in enumerate(messages, 1):
        content = (message.get("content") or "").strip()
        mark = loose_mark(content) if message["role"] == "assistant" else None
        if mark is None or mark not in template.source:
            continue
        if content not in text and as_json(content)[1:-1] not in text:
            raise BadRow(
                f"the chat template, which bounds thoughts by {mark!r}, renders message {number} otherwise than it "
                "stands, for that is within its words; take it out, or write a thought between <think> and </think> "
                "at the start"
            )
