"""`response_format`: what an answer has to match."""

from __future__ import annotations

import json
from typing import Any

from luthier.engine.grammar import ANY_OBJECT, Grammar, of_schema
from luthier.serving.http.fields import refused

KINDS = {
    "text": (),
    "json_object": (),
    "json_schema": ("json_schema",),
    "regex": ("regex",),
    "grammar": ("grammar",),
}
"""Kinds of formats, each with what it needs. The first three are OpenAI's."""
SCHEMA = ("name", "schema", "strict", "description")
MOST_NESTED = 64
"""Levels of a schema."""


def format_of(value: Any) -> Grammar | None:
    """Returns what `response_format` asks for; None for text."""
    if value is None or isinstance(value, Grammar):
        return value
    if not isinstance(value, dict) or str(value.get("type")) not in KINDS:
        raise refused("unsupported_value", f"response_format: expected a type of {', '.join(KINDS)}.", "type")
    kind, rest = value["type"], {key: each for key, each in value.items() if key != "type"}
    needed = KINDS[kind]
    if set(rest) != set(needed):
        wanted = " and ".join(["type", *needed])
        raise refused("invalid_value", f"response_format of type {kind}: expected {wanted}, and nothing else.")
    if kind == "text":
        return None
    if kind == "json_object":
        return of_schema(ANY_OBJECT)
    return _schema(rest["json_schema"]) if kind == "json_schema" else _written(kind, rest[kind])


def _schema(given: Any) -> Grammar:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str) or set(given) - set(SCHEMA):
        raise refused("invalid_value", f"json_schema: expected an object of {', '.join(SCHEMA)}.", "json_schema")
    if not isinstance(given.get("strict", True), bool | None):
        raise refused(
            "invalid_value", "json_schema: strict is true or false; a schema holds either way.", "json_schema"
        )
    return of_schema(checked_schema(given.get("schema", True), "json_schema"))


def checked_schema(schema: Any, where: str) -> Any:
    """Returns a schema; raises for what is not an object, and for one that is nested too deep."""
    if schema is not True and not isinstance(schema, dict):
        raise refused("invalid_value", f"{where}: a schema is an object.", where)
    if _depth(schema) > MOST_NESTED:
        raise refused("invalid_value", f"{where}: the schema has more than {MOST_NESTED} levels.", where)
    return schema


def _depth(value: Any) -> int:
    """How deep lists and objects lie in each other; counted level by level, as a body may be deep."""
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _written(kind: str, text: Any) -> Grammar:
    if not isinstance(text, str) or not text:
        raise refused("invalid_value", f"{kind}: expected a text.", kind)
    return Grammar("regex" if kind == "regex" else "lark", text)


def schema_text(grammar: Grammar) -> Any:
    """Returns the schema of a grammar that is one."""
    return json.loads(grammar.text)
