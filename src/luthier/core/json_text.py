"""JSON text in which no key may stand twice in one object: readers keep the last and drop the others unsaid."""

from __future__ import annotations

import json
from typing import Any


class Twice(ValueError):
    """A key stands twice in one object."""


class Marked(dict[str, Any]):
    """An object with a key that stands twice."""

    twice = ""


def loads(text: str) -> Any:
    """Returns what JSON text holds; raises `Twice` where a key stands twice in an object, at any depth."""
    return json.loads(text, object_pairs_hook=once)


def loads_marked(text: str) -> Any:
    """As `loads`, but an object whose key stands twice is `Marked`, so that other rows of a file can be read."""
    return json.loads(text, object_pairs_hook=_marked)


def repeated(value: Any) -> str:
    """Returns why a value of `loads_marked` cannot be used, or nothing."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, Marked):
            return each.twice
        left += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
    return ""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of its pairs, as json's `object_pairs_hook`; raises `Twice`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Twice(_reason(pairs))
    return found


def _marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    marked = Marked(found)
    marked.twice = _reason(pairs)
    return marked


def _reason(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    name = next(name for name, _ in pairs if name in seen or seen.add(name))
    return f"the key {name!r:.100} stands twice in one object, and only one of the two could be read"
