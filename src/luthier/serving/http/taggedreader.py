"""Reads the arguments of a call that stand one by one between tags, and tells them as JSON while they come."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier.serving.http.tagged import Tags, kinds_of, loose, value_of

LONGEST_KEY = 1000
"""Characters of a key with its tags; what is longer is none."""


class TaggedArguments:
    """The arguments of one call, from behind its name on.

    A text is told as it comes, and any other value once it is whole. What is neither an argument nor the end of the
    call ends it there. Each letter is looked at a bounded number of times.
    """

    def __init__(self, tags: Tags, schema: Mapping[str, Any], tail: str) -> None:
        """`tail` is what stands behind the last value of a call."""
        self.done = False
        self._tags, self._tail = tags, tail
        known = schema.get("properties")
        self._properties: Mapping[str, Any] = known if isinstance(known, Mapping) else {}
        self._held = ""
        self._step: Callable[[], str] | None = self._begin
        self._count = 0
        """Arguments that were told."""
        self._schema: Any = None
        self._streams = self._told = False
        """Of the value at hand: whether it is told as it comes, and whether some of it was."""
        self._seen = 0
        """How much of what is held was searched for the end of the value."""
        self._key = _key(tags)
        self._close = re.compile(loose(tags.value_close))
        self._first = tags.value_close.split()[0]

    def add(self, text: str) -> tuple[str, str]:
        """Returns the JSON that some more text makes, and what follows the call."""
        self._held += text
        told = ""
        while self._step is not None:
            before = self._step, len(self._held)
            told += self._step()
            if (self._step, len(self._held)) == before:
                break
        return (told, self._held) if self.done else (told, "")

    def rest(self) -> str:
        """Returns what was held back of a text, where the answer ends in it."""
        return _inner(self._held) if self._step == self._value and self._streams and self._told else ""

    def _begin(self) -> str:
        """What stands between the name and the first key."""
        where = after(self._held, self._tags.after)
        if where > 0 or (where == 0 and not self._tags.after.strip()):
            self._held, self._step = self._held[where:], self._between
            return "{"
        return "" if where == 0 else "{" + self._end(0)

    def _between(self) -> str:
        """Another key, or the end of the call."""
        self._held = self._held.lstrip()
        if match := self._key.match(self._held):
            return self._begin_value(match)
        end, key = after(self._held, self._tail), after(self._held, self._tags.key_open)
        if end > 0 or (end == 0 and not self._tail.strip() and key < 0):
            return self._end(end)
        opened = key > 0 and may_become(self._held[key:], self._tags.key_close)
        return "" if end == 0 or key == 0 or opened else self._end(0)

    def _begin_value(self, match: re.Match[str]) -> str:
        self._schema = self._properties.get(match["key"])
        self._held, self._step = self._held[match.end() :], self._value
        self._streams, self._told, self._seen = kinds_of(self._schema) == {"string"}, False, 0
        self._count += 1
        return (", " if self._count > 1 else "") + json.dumps(match["key"], ensure_ascii=False) + ": "

    def _value(self) -> str:
        at = self._held.find(self._first, self._seen)
        while at >= 0:
            if match := self._close.match(self._held, at):
                return self._whole(match)
            if after(self._held[at : at + 2 * LONGEST_KEY], self._tags.value_close) == 0:
                break  # it may yet be one
            at = self._held.find(self._first, at + 1)
        stop = at if at >= 0 else max(self._seen, len(self._held) - len(self._first) + 1)
        self._seen = max(0, stop)
        return self._ready(self._seen) if self._streams else ""

    def _ready(self, stop: int) -> str:
        """What may be told of a text, without white space before the end of the value."""
        begin, end = self._around()
        stop -= len(end)
        if stop <= (0 if self._told else len(begin)):
            return ""
        text = self._held[:stop] if self._told else self._held[:stop].removeprefix(begin)
        opens = "" if self._told else '"'
        self._held, self._seen, self._told = self._held[stop:], self._seen - stop, True
        return opens + _inner(text)

    def _whole(self, match: re.Match[str]) -> str:
        raw, self._held, self._step = self._held[: match.start()], self._held[match.end() :], self._between
        if not self._streams:
            return json.dumps(value_of(self._tags.text(raw), self._schema), ensure_ascii=False)
        if not self._told:
            return json.dumps(self._tags.text(raw), ensure_ascii=False)
        _, end = self._around()
        return _inner(raw.removesuffix(end) if end else raw) + '"'

    def _around(self) -> tuple[str, str]:
        """The white space that the template puts before and behind a value."""
        close, end = self._tags.key_close, self._tags.value_close
        return close[len(close.rstrip()) :], end[: len(end) - len(end.lstrip())]

    def _end(self, at: int) -> str:
        self._held, self._step, self.done = self._held[at:], None, True
        return "}"


def _key(tags: Tags) -> re.Pattern[str]:
    """What a key with its tags looks like. It is on one line, and holds not what begins the end of its tag: so each
    text is tried in one way."""
    inside = rf"[^\n{re.escape(tags.key_close.strip()[0])}]"
    key = rf"(?P<key>(?!\s){inside}(?:{inside}*(?<!\s))?)"
    return re.compile(rf"\s*{loose(tags.key_open)}\s*{key}\s*{loose(tags.key_close)}")


def after(text: str, literal: str) -> int:
    """Returns the place behind a literal that a text begins with, white space aside; 0 where it may yet begin so, -1
    where it does not."""
    if match := re.compile(rf"\s*{loose(literal)}").match(text):
        return match.end()
    return 0 if len(text) < len(literal) + LONGEST_KEY and _bare(literal).startswith(_bare(text)) else -1


def may_become(text: str, close: str) -> bool:
    """Returns whether a text may become a key and what closes it."""
    first = close.strip()[0]
    key, found, rest = text.lstrip().partition(first)
    if not found:
        return "\n" not in key.rstrip() and len(text) < LONGEST_KEY
    return bool(key.strip()) and "\n" not in key.rstrip() and after(found + rest, close) == 0


def named(text: str, lead: str, ways: Sequence[str]) -> tuple[str, str] | None:
    """Returns (name, what follows it) of a text that begins behind the marker of a call, once one of `ways` follows.

    These are the first argument and the end of the call. None while it may yet become one; the name is empty where it
    is none.
    """
    short, head = len(text) < LONGEST_KEY, re.match(rf"\s*(?:{loose(lead)}\s*)?(?P<name>[\w.-]+)", text)
    if head is None:
        at = after(text, lead)
        return None if short and (at == 0 or (at > 0 and not text[at:].strip())) else ("", text)
    behind = text[head.end() :]
    if not behind:
        return None if short else ("", text)
    found = max(after(behind, way) for way in ways)
    return (head["name"], behind) if found > 0 else None if found == 0 else ("", text)


def _bare(text: str) -> str:
    return "".join(text.split())


def _inner(text: str) -> str:
    """A text as it stands in a string of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
