"""How a chat template writes calls of functions, learned by rendering one: no format is known by name.

Three forms are told apart. In the first a call is a JSON object that holds the function's name and its arguments
(Hermes, Qwen, Llama 3, Mistral); in the second the name stands before an object of arguments (DeepSeek, Mistral since
2411; GLM-4 of 2024, where nothing else tells a call); in the third arguments stand one by one between tags
(Qwen3-Coder, GLM-4.5; see `tagged`). What stands around and between calls is taken from the render of one call and of
two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.core.contracts.example import Example
from luthier.core.errors import LuthierError
from luthier.data.chat import rendered
from luthier.data.ends import eos_of, stop_of
from luthier.data.template import Template, has_template
from luthier.engine.grammar import inline
from luthier.engine.text import special_ids
from luthier.serving.http.tagged import KEYS, VALUES, Tags, arguments_in_lark, tags_of

NAMES = ("probe_alpha", "probe_beta")
GIVEN = {"probe_key": "probe value"}
IDS = ("probe0id1", "probe0id2")
ID = re.compile(r""",?\s*"id":\s*"probe0id\d"|probe0id\d""")
ASKED = {"role": "user", "content": "probe question"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"The tool {name}.",
            "parameters": {"type": "object", "properties": {"probe_key": {"type": "string", "description": "A key."}}},
        },
    }
    for name in NAMES
]


@dataclass(frozen=True)
class CallFormat:
    """What stands around the names and arguments of calls."""

    marker: str
    """What tells that a call follows, a token where there is one; empty where an answer that is a JSON object is a
    call, or one that begins with a name on a line of its own."""
    opening: str
    """All before the first name."""
    inner: str
    """Between a name and its arguments."""
    between: str | None
    """Between the arguments of a call and the next name; None where the template takes one call a turn."""
    closing: str
    """All behind the last arguments."""
    keys: tuple[str, str] | None = None
    """The keys of name and arguments, where a call is an object."""
    tail: str = ""
    """What follows a call that is the last, behind its object or arguments."""
    link: str = ""
    """What stands between two calls, up to where the next one's object or name begins."""
    tags: Tags | None = None
    """What stands around arguments that come one by one."""

    def tokens(self, tokenizer: Any) -> frozenset[int]:
        """Returns the special tokens that are a part of calls, and so of the text that is read."""
        tags = (self.tags.after, self.tags.key_open, self.tags.key_close, self.tags.value_close) if self.tags else ()
        there = "".join([self.opening, self.inner, self.between or "", self.closing, *tags])
        names = tokenizer.convert_ids_to_tokens(known := sorted(special_ids(tokenizer)))
        return frozenset(token for token, name in zip(known, names, strict=True) if name in there)


def call_format(tokenizer: Any, variables: Mapping[str, Any] = {}) -> CallFormat | None:
    """Returns how the tokenizer's template writes calls; None where it writes none, or in a form of its own."""
    if not has_template(tokenizer):
        return None
    one = _written(tokenizer, variables, 1)
    two = _written(tokenizer, variables, 2)
    whole = None if one is None else _object_form(one, two) or _named_form(one, two)
    found = whole or _tagged_form(tokenizer, variables)
    token = next((each for each in tokenizer.get_added_vocab() if found and found.marker.startswith(each)), None)
    return replace(found, marker=token) if found and token else found


def _written(tokenizer: Any, variables: Mapping[str, Any], count: int, given: Mapping[str, str] = GIVEN) -> str | None:
    """An answer of so many calls, as the template writes it; None where it does not."""
    calls = [
        {"id": number, "type": "function", "function": {"name": name, "arguments": dict(given)}}
        for number, name in zip(IDS[:count], NAMES, strict=False)
    ]
    turns = [ASKED, {"role": "assistant", "content": "", "tool_calls": calls}]
    example = Example(row=1, messages=turns, context=1, tools=TOOLS, template=dict(variables))
    try:
        found = rendered(example, tokenizer)
        ends = (stop_of(Template.of(example, tokenizer)), eos_of(tokenizer))
    except LuthierError:
        return None
    text = found.text[found.spans[-1][0] :]
    for end in filter(None, ends):
        text = text.partition(end)[0]
    text = text.rstrip()
    return ID.sub("", text)


Place = tuple[int, int]


def _objects(text: str, fits: Any) -> Iterator[tuple[Place, Any]]:
    """(place, value) of the JSON objects in a text that fit, the outermost ones."""
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, stop = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        if fits(value):
            yield (at, stop), value
            at = stop
        else:
            at += 1


def _is_call(value: Any) -> bool:
    return GIVEN in value.values() and any(value.get(key) in NAMES for key in value)


def _object_form(one: str, two: str | None) -> CallFormat | None:
    found = list(_objects(one, _is_call))
    if len(found) != 1:
        return None
    ((start, stop), value) = found[0]
    named = next(key for key, each in value.items() if each in NAMES)
    given = next(key for key, each in value.items() if each == GIVEN)
    name, arguments = _inside(one, start, stop)
    pair = [place for place, _ in _objects(two or "", _is_call)]
    between = link = None
    if two is not None and len(pair) == 2:
        link = two[pair[0][1] : pair[1][0]]
        between = two[_inside(two, *pair[0])[1][1] : _inside(two, *pair[1])[0][0]]
    if arguments[0] < name[1]:  # arguments first: such a call can be read, and not begun by its name
        return None
    return CallFormat(
        one[:start].strip(), one[: name[0]], one[name[1] : arguments[0]], between, one[arguments[1] :],
        (named, given), one[stop:], link or "",
    )  # fmt: skip


def _inside(text: str, start: int, stop: int) -> tuple[Place, Place]:
    """The places of a name and of its arguments within a call."""
    at = min(place for name in NAMES if (place := text.find(name, start, stop)) >= 0)
    (arguments, _), *_ = _given(text, start, stop)
    return (at, at + len(next(name for name in NAMES if text.startswith(name, at)))), arguments


def _given(text: str, start: int, stop: int) -> list[tuple[Place, Any]]:
    found = _objects(text[start + 1 : stop], lambda value: value == GIVEN)
    return [((a + start + 1, b + start + 1), value) for (a, b), value in found]


def _named_form(one: str, two: str | None) -> CallFormat | None:
    found = [_named(one, NAMES[0], 0)]
    if found[0] is None:
        return None
    (at, end), (start, stop) = found[0]
    between = None
    if two is not None and (first := _named(two, NAMES[0], 0)) and (second := _named(two, NAMES[1], first[1][1])):
        between = two[first[1][1] : second[0][0]]
    opening, inner = one[:at], one[end:start]
    alone = not opening.strip() and "\n" in inner and not inner.strip()  # a name on a line of its own
    if not alone and not (opening.strip() and inner.strip()):
        return None
    return CallFormat(opening.strip(), opening, inner, between, one[stop:], None, one[stop:], between or "")


def _named(text: str, name: str, since: int) -> tuple[Place, Place] | None:
    at = text.find(name, since)
    found = _given(text, at + len(name) - 1, len(text)) if at >= 0 else []
    return ((at, at + len(name)), found[0][0]) if found else None


def _tagged_form(tokenizer: Any, variables: Mapping[str, Any]) -> CallFormat | None:
    """A form whose arguments stand one by one, from a call without any and a call and two calls with two of them."""
    given = dict(zip(KEYS, VALUES, strict=True))
    none, one, two = (_written(tokenizer, variables, *each) for each in ((1, {}), (1, given), (2, given)))
    found = tags_of(none, one, NAMES[0]) if none is not None and one is not None else None
    if found is None or one is None:
        return None
    opening, tags, tail = found
    second = two.find(NAMES[1]) if two is not None else -1
    between = two[len(one) - len(tail) : second] if two is not None and second > 0 else None
    return CallFormat(opening.strip(), opening, "", between, tail, None, tail, between or "", tags)


# --- what a model is held to ---


def literal(text: str, tokenizer: Any) -> str:
    """Returns a text as a part of a grammar in Lark; added tokens stand as such."""
    added = sorted(tokenizer.get_added_vocab().items(), key=lambda each: -len(each[0]))
    if not added:
        return json.dumps(text, ensure_ascii=False) if text else ""
    pattern = re.compile("(" + "|".join(re.escape(token) for token, _ in added) + ")")
    ids = dict(added)
    parts = [f"<[{ids[p]}]>" if p in ids else json.dumps(p, ensure_ascii=False) for p in pattern.split(text) if p]
    return " ".join(parts)


def calls_in_lark(written: CallFormat, tools: Mapping[str, Any], tokenizer: Any, most: int | None) -> list[str]:
    """Returns the rules of `calls`, one call or more of the tools (name: schema of its arguments); `most` 1: one."""

    def said(text: str) -> str:
        return literal(text, tokenizer)

    def given(schema: Any) -> str:
        tags = written.tags
        return inline(schema) if tags is None else arguments_in_lark(tags, schema, said, inline)

    each = [f"{said(name + written.inner)} {given(schema)}" for name, schema in tools.items()]
    more = f" ({said(written.between)} call)*" if written.between is not None and most != 1 else ""
    return [
        f"calls: {said(written.opening)} call{more} {said(written.closing)}",
        "call: " + " | ".join(f"call_{i}" for i in range(len(each))),
        *(f"call_{i}: {rule}" for i, rule in enumerate(each)),
    ]


def chosen_in_lark(calls: Sequence[str], written: CallFormat, otherwise: str | None, tokenizer: Any) -> str:
    """Returns a grammar of `calls` or `otherwise` (a rule's right-hand side); None: text, in which calls may stand."""
    if otherwise is not None:
        return "\n".join([f"start: calls | {otherwise}", *calls])
    if not written.marker and written.keys:  # an answer that is an object is a call
        return "\n".join(['start: calls | /[^{](.|\\n)*/ | ""', *calls])
    if not written.marker:
        raise LuthierError("the template opens calls with nothing but their name")
    head = written.opening[: written.opening.index(written.marker) + len(written.marker)]
    trigger, rest = literal(written.marker, tokenizer), calls[0].split(literal(head, tokenizer), 1)
    if trigger.startswith("<["):
        first = f"calls: TEXT {trigger} {rest[1]}" if len(rest) == 2 else calls[0]
        return "\n".join(["start: calls* TEXT", "TEXT: /(.|\\n)*/", first, *calls[1:]])
    raise LuthierError("the template opens calls with a text that is not a token")
