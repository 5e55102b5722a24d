"""Calls whose arguments stand one by one between tags, as Qwen3-Coder and GLM write them: learned, read, held to.

A call is `head name after (key_open key key_close value value_close)* tail`; what these are is taken from renders of
the template, like all of a form of calls (see `calls`). A text stands in such a value as it is and anything else as
JSON, so that it is read by the type which the tool's schema gives.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.serving.http.fields import refused

KEYS, VALUES = ("probe_key", "probe_other"), ("probe value", "probe more")
LITERAL = {"type", "enum", "const", "title", "description", "default"}
"""Keywords of a text's schema that can be held to between tags."""
OBJECT = {"type", "properties", "required", "additionalProperties", "title", "description", "$schema"}
"""Those of the arguments."""


@dataclass(frozen=True)
class Tags:
    """What stands around the keys and values of a call."""

    after: str
    """Between the name and the first key's opening, or the end of a call without arguments."""
    key_open: str
    key_close: str
    """Between a key and its value."""
    value_close: str

    def text(self, raw: str) -> str:
        """Returns a value without the line breaks that the template puts around it."""
        begin = self.key_close[len(self.key_close.rstrip()) :]
        end = self.value_close[: len(self.value_close) - len(self.value_close.lstrip())]
        return raw.removeprefix(begin).removesuffix(end) if end else raw.removeprefix(begin)


def loose(literal: str) -> str:
    """Returns a pattern for a text whose white space may differ."""
    return r"\s*".join(re.escape(word) for word in literal.split())


def tags_of(none: str, two: str, name: str) -> tuple[str, Tags, str] | None:
    """Returns (all before the name, the tags, all behind the last value) of a call, from its renders without arguments
    and with `KEYS` and `VALUES`; None where it is written otherwise."""
    places, at = [], 0
    for word in (name, KEYS[0], VALUES[0], KEYS[1], VALUES[1]):
        if (start := two.find(word, at)) < 0:
            return None
        places.append((start, at := start + len(word)))
    before = two[: places[0][0]]
    between = [two[a[1] : b[0]] for a, b in itertools.pairwise(places)]
    first, close, middle, again = between
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first[::-1], middle[::-1], strict=False))
    key_open = "".join(letter for letter, _ in same)[::-1]
    after, value_close = first[: len(first) - len(key_open)], middle[: len(middle) - len(key_open)]
    rest = two[places[-1][1] :]
    whole = close == again and close.strip() and key_open.strip() and value_close.strip() and before.strip()
    if not whole or not rest.startswith(value_close):
        return None
    tail = rest[len(value_close) :]
    said = before + name + after + tail
    return (before, Tags(after, key_open, close, value_close), tail) if said.split() == none.split() else None


# --- reading ---


def value_of(text: str, schema: Any) -> Any:
    """Returns a value by its type in the schema: a text as it is, all else as JSON; what is not JSON stays a text, and
    so does, where a text may stand, what no other type of the schema admits."""
    kinds, bare = kinds_of(schema), text.strip()
    if kinds == {"string"} or text in _named(schema):
        return text
    if bare in ("True", "False", "None") and "string" not in kinds:  # as templates of jinja write them
        bare = {"True": "true", "False": "false", "None": "null"}[bare]
    try:
        value = json.loads(bare, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return text
    return value if "string" not in kinds or _kinds(value) & (kinds - {"string"}) else text


def kinds_of(schema: Any) -> set[str]:
    """Returns the types that a schema admits, by `type`, `enum` and `const`, or the branches of `anyOf` and `oneOf`
    (such as pydantic's optional fields); empty where it does not say. A branch that does not say, such as a reference,
    is of objects and lists."""
    if not isinstance(schema, Mapping):
        return set()
    if stated := schema.get("type"):
        return {stated} if isinstance(stated, str) else set(map(str, stated)) if isinstance(stated, list) else set()
    if named := _named(schema):
        return set().union(*map(_kinds, named))
    branches = [each for word in ("anyOf", "oneOf") for each in _listed(schema.get(word))]
    return {kind for each in branches for kind in kinds_of(each) or ("object", "array")}


def _named(schema: Any) -> list[Any]:
    """The values of an enumeration or a constant."""
    if not isinstance(schema, Mapping):
        return []
    return [schema["const"]] if "const" in schema else _listed(schema.get("enum"))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _kinds(value: Any) -> set[str]:
    """The types of JSON Schema that a value is of."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"integer", "number"}
    names = {bool: "boolean", float: "number", str: "string", list: "array", dict: "object"}
    return {names.get(type(value), "null")}


def _finite(text: str) -> float:
    """A finite number, as all of JSON are."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


# --- what a model is held to ---


def arguments_in_lark(tags: Tags, schema: Mapping[str, Any], literal: Any, inline: Any) -> str:
    """Returns the right-hand side of a rule for the arguments of a tool, in the order of its properties.

    Raises for a schema that cannot be followed between tags.
    """
    odd = sorted(set(schema) - OBJECT) or ([] if schema.get("type", "object") == "object" else ["type"])
    if odd:
        raise _odd(odd[0])
    properties, needed = schema.get("properties", {}), schema.get("required", [])
    parts = [literal(tags.after)]
    for key, each in properties.items():
        value = _value_in_lark(each, tags, literal, inline)
        one = f"{literal(tags.key_open + key + tags.key_close)} {value} {literal(tags.value_close)}"
        parts.append(one if key in needed else f"({one})?")
    return " ".join(filter(None, parts))


def _value_in_lark(schema: Any, tags: Tags, literal: Any, inline: Any) -> str:
    schema = {} if schema is True else schema
    kinds = schema.get("type")
    if named := _named(schema):
        return "(" + " | ".join(literal(_said(each)) for each in named) + ")"
    if kinds == "string":
        if odd := sorted(set(schema) - LITERAL):
            raise _odd(odd[0])
        return f"/[^{re.escape(tags.value_close.strip()[0])}]*/"
    if isinstance(kinds, str):
        return inline(schema)
    raise _odd("type")


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _odd(keyword: str) -> Exception:
    message = (
        f"this model writes arguments one by one between tags, where {keyword!r} of their schema cannot be held to; "
        "leave it out, or let the model choose (tool_choice auto, not strict)."
    )
    return refused("unsupported_value", message, "tools")
