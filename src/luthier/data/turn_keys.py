"""Keys of turns, of their parts and of their calls that are not read whatever the template."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from luthier.data.messages import THOUGHTS
from luthier.data.pictures import COLUMNS as PICTURED
from luthier.data.pictures import KEYS
from luthier.data.turns import FLAGS, THOUGHT_IN, TOOLS, decoded, held

KNOWN = (
    *("role", "from", "content", "value", "parts", "tool_calls", "function_call", "tool_call_id"),
    *(*THOUGHTS, *FLAGS, *PICTURED),
)
"""Keys of a turn that are read whatever the template."""
PART = ("type", "text", *THOUGHT_IN, *KEYS, *FLAGS, "detail")
"""Keys of a part that are read."""
CALL = ("id", "type", "function", "name", "arguments", "parameters", "index")
"""Keys of a call that are read, or that say nothing."""


def keys(value: Any) -> Iterable[str]:
    """The keys of the turns in a column that are not read whatever the template, and of the parts and calls in them."""
    found = held(value)
    for i, message in enumerate(found if isinstance(found, list) else []):
        if isinstance(message, dict):
            yield from _beyond(message, (*KNOWN, *TOOLS) if i == 0 else KNOWN)
            for key in ("content", "value", "parts"):
                yield from (f"{key}[].{each}" for each in _inner(message.get(key), PART))
            for call in _listed(decoded(message.get("tool_calls"))):
                inner = {"function": call.get("function")} if isinstance(call.get("function"), dict) else {}
                yield from (f"tool_calls[].{each}" for each in _beyond(call, CALL))
                yield from (f"tool_calls[].function.{each}" for each in _inner([*inner.values()], CALL))


def _beyond(value: dict[str, Any], known: Collection[str]) -> Iterable[str]:
    return (key for key, each in value.items() if key not in known and each not in (None, "", [], {}))


def _inner(value: Any, known: Collection[str]) -> Iterable[str]:
    return (key for each in _listed(value) for key in _beyond(each, known))


def _listed(value: Any) -> list[dict[str, Any]]:
    """The objects in a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
