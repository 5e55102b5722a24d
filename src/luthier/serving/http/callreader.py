"""Reads calls of functions out of an answer as it comes: what is text, which function is called, its arguments."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.serving.http.calls import CallFormat
from luthier.serving.http.tagged import Tags, loose
from luthier.serving.http.taggedreader import TaggedArguments, named

LETTERS = string.ascii_letters + string.digits
LONGEST = 9
"""Characters of a call's id: Mistral's templates take no other length."""


@dataclass
class Call:
    """A call that an answer makes."""

    name: str
    id: str
    arguments: str = ""

    def told(self) -> dict[str, Any]:
        """Returns it as OpenAI's clients read it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Piece:
    """What a part of an answer brings: text, or a part of a call."""

    text: str = ""
    call: int | None = None
    """The number of the call that `name` opens and `arguments` go on with."""
    name: str | None = None
    id: str | None = None
    arguments: str = ""


def new_id() -> str:
    """Returns an id that every template takes when the call is sent back."""
    return "".join(secrets.choice(LETTERS) for _ in range(LONGEST))


class CallReader:
    """The pieces of one answer. What is not a call of a known function stays text, as the model wrote it."""

    def __init__(self, written: CallFormat, tools: Mapping[str, Any], one: bool = False) -> None:
        """`tools` are the schemas of arguments by name. With `one`, what follows a first call is left out."""
        self._format, self._tools, self._one = written, tools, one
        self._held = ""
        """What has come and was not told yet."""
        self._raw = ""
        """What the call that is being read begins with, in case that it is none."""
        self._step = self._text
        self._object_end, self._object_seen = Nesting(), 0
        """Where a call that is an object ends, and how much of it was looked at."""
        self._whole = self._space = ""
        self._behind = False
        """Whether a call was the last that was told; `_space` is the white space behind it."""
        self._arguments: Arguments | TaggedArguments | None = None
        self.calls: list[Call] = []

    def add(self, text: str) -> list[Piece]:
        """Returns what may be told after some more text."""
        self._held += text
        return list(self._run())

    def rest(self) -> list[Piece]:
        """Returns what was held back, at the end of the answer."""
        pieces = [*self._run(), *self._cut()]
        begun = self._step == self._head and self.calls and not self._raw  # a further call that was cut off
        if self._step in (self._text, self._head) and not begun:
            pieces += self._said((self._raw if self._step == self._head else "") + self._held)
        self._held = self._raw = ""
        return pieces

    def _cut(self) -> Iterator[Piece]:
        """What was held back of an argument in which the answer ends."""
        if self._step == self._inside and isinstance(self._arguments, TaggedArguments):
            yield from self._gave(self._arguments.rest())

    def _run(self) -> Iterator[Piece]:
        before = None
        while before != (self._step, self._held):
            before = (self._step, self._held)
            yield from self._step()

    def _said(self, text: str) -> Iterator[Piece]:
        """Text, except white space around calls; behind one it is held until some text follows."""
        text, self._space = self._space + text, ""
        if self.calls and self._behind and not text.strip():
            self._space = text
        elif text:
            self._whole, self._behind = self._whole + text, False
            yield Piece(text)

    def _text(self) -> Iterator[Piece]:
        marker = self._format.marker
        at = self._held.find(marker) if marker else self._begins()
        if at >= 0:
            ahead, self._held = self._held[:at], self._held[at + len(marker) :]
            self._step = self._head
            self._object_end, self._object_seen = Nesting(), 0
            before = ahead.rstrip()
            yield from self._said(before)
            self._raw = self._space + ahead[len(before) :] + marker
            self._behind, self._space = True, ""
            return
        keep = len(self._held) if at == HOLD else _held_back(self._held, marker)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        yield from self._said(ready)

    def _begins(self) -> int:
        """Without a marker: 0 where the whole answer is an object, or begins with a name on a line of its own."""
        if self._whole or self.calls:
            return -1
        bare = self._held.lstrip()
        if self._format.keys is not None or not bare:
            return HOLD if not bare else 0 if bare[0] == "{" else -1
        name, line, rest = bare.partition("\n")
        if not line:
            return HOLD if any(each.startswith(name.rstrip()) for each in self._tools) else -1
        rest = rest.lstrip() if name.rstrip() in self._tools else "-"
        return HOLD if not rest else 0 if rest[0] == "{" else -1

    def _head(self) -> Iterator[Piece]:
        """Up to the arguments of a call."""
        tags = self._format.tags
        found = self._tagged(tags) if tags else self._named() if self._format.keys is None else self._object()
        if found is None:
            return
        name, rest = found
        if name not in self._tools:
            yield from self._no_call()
            return
        self.calls.append(Call(name, new_id()))
        self._arguments = TaggedArguments(tags, self._tools[name], self._format.tail) if tags else Arguments()
        self._held, self._raw = rest, ""
        self._step = self._inside
        yield Piece(call=len(self.calls) - 1, name=name, id=self.calls[-1].id)

    def _no_call(self) -> Iterator[Piece]:
        """It is text; behind a marker a call may yet stand."""
        text, self._held = (self._raw, self._held) if self._raw else (self._held, "")
        self._raw, self._step = "", self._text
        self._whole, self._behind = self._whole + text, False
        yield Piece(text)

    def _object(self) -> tuple[str, str] | None:
        """(name, what follows up to its arguments) of a call that is an object; None while it may still become one."""
        at = self._held.find("{")
        if at < 0:
            return None
        first, second = (re.escape(json.dumps(key)) for key in self._format.keys or ())
        head = rf'\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?{first}\s*:\s*"([^"\\]*)"\s*,\s*{second}\s*:\s*(?=[{{"])'
        if found := re.compile(head).match(self._held, at):
            return found[1], self._held[found.end() :]
        return self._late(at)

    def _late(self, at: int) -> tuple[str, str] | None:
        """A call whose keys stand in another order is read once it is whole; what is then no JSON is none."""
        more = self._held[at + self._object_seen :]
        end = self._object_end.end(more)
        if end < 0:
            self._object_seen += len(more)
            return None
        stop = at + self._object_seen + end
        rest = self._held[stop:]
        try:
            value = json.loads(self._held[at:stop])
        except (ValueError, RecursionError):
            return "", rest
        named, given = self._format.keys or ("", "")
        if isinstance(value.get(named), str) and isinstance(value.get(given, {}), dict):
            return value[named], json.dumps(value.get(given, {}), ensure_ascii=False) + "}" + rest
        return "", rest

    def _named(self) -> tuple[str, str] | None:
        """(name, what follows up to its arguments) of a call whose name stands before them."""
        lead = self._format.opening.strip().removeprefix(self._format.marker)
        pattern = rf"\s*(?:{loose(lead)})?\s*([\w.-]+?)\s*{loose(self._format.inner)}\s*(?=\{{)"
        found = re.match(pattern, self._held)
        return (found[1], self._held[found.end() :]) if found else None

    def _tagged(self, tags: Tags) -> tuple[str, str] | None:
        """(name, what follows it) of a call whose arguments stand one by one."""
        lead = self._format.opening.strip().removeprefix(self._format.marker)
        return named(self._held, lead, [f"{tags.after} {each}" for each in (tags.key_open, self._format.tail)])

    def _inside(self) -> Iterator[Piece]:
        """The arguments of a call."""
        assert self._arguments is not None
        more, self._held = self._arguments.add(self._held)
        yield from self._gave(more)
        if self._arguments.done:
            self._step = self._over if self._one else self._text if self._format.tags else self._after

    def _gave(self, arguments: str) -> Iterator[Piece]:
        if arguments:
            self.calls[-1].arguments += arguments
            yield Piece(call=len(self.calls) - 1, arguments=arguments)

    def _over(self) -> Iterator[Piece]:
        self._held = ""
        yield from ()

    def _after(self) -> Iterator[Piece]:
        """Behind the arguments: the rest of the call, then another one or text."""
        close, seen = "}" if self._format.keys else "", _bare(self._held)
        ways = [(self._format.link, self._head)] if self._format.between is not None else []
        for literal, step in (*ways, (self._format.tail, self._text)):
            wanted = _bare(close + literal)
            if seen.startswith(wanted):
                self._held = self._held[_length(self._held, wanted) :]
                self._step, self._raw = step, ""
                self._object_end, self._object_seen = Nesting(), 0
                return
            if wanted.startswith(seen):
                return
        self._step = self._text
        yield from ()


HOLD = -2


class Nesting:
    """Where a value of JSON ends, an object or a string, as it comes: every letter is looked at once."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False

    def end(self, text: str) -> int:
        """Returns the place in some more text behind the end of the value, -1 where it goes on."""
        for at, letter in enumerate(text):
            self.see(letter)
            if not self._depth and not self._quoted:
                return at + 1
        return -1

    def see(self, letter: str) -> None:
        """Takes the next letter."""
        if self._quoted:
            self._quoted = self._escaped or letter != '"'
            self._escaped = letter == "\\" and not self._escaped
        elif letter == '"':
            self._quoted = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1


class Arguments:
    """An object of JSON, or a string that holds one, as it comes."""

    def __init__(self) -> None:
        self.done = False
        self._nesting = Nesting()
        self._string: list[str] | None = None
        """The parts of a string, which is told once it is whole."""
        self._begun = False

    def add(self, text: str) -> tuple[str, str]:
        """Returns what belongs to the object, and what follows it."""
        if text and not self._begun:
            self._begun, self._string = True, [] if text[0] == '"' else None
        end = self._nesting.end(text)
        self.done = end >= 0
        mine, rest = (text[:end], text[end:]) if self.done else (text, "")
        if self._string is None:
            return mine, rest
        self._string.append(mine)
        return (_unquoted("".join(self._string)), rest) if self.done else ("", "")


def _unquoted(text: str) -> str:
    """The text of a string of JSON, line breaks and all; what is none is taken as it stands."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text[1:-1]


def _held_back(text: str, marker: str) -> int:
    """How much of the end of a text may yet be the white space before a marker, or a part of it."""
    most = next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)
    head = text[: len(text) - most]
    return most + len(head) - len(head.rstrip()) if marker else 0


def _bare(text: str) -> str:
    return "".join(text.split())


def _length(text: str, bare: str) -> int:
    """How long the beginning of a text is that has these characters, white space aside."""
    left = len(bare)
    for at, letter in enumerate(text):
        if not left:
            return at
        left -= not letter.isspace()
    return len(text)
