"""What JSON values must be: small checks that combine, each told where the value stands."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from luthier.core.errors import LuthierError

Check = Callable[[str, Any], None]
"""Raises unless a value, at the place that the text names, is as it must be."""

WHOLE = 2**53
"""Up to which whole numbers are exact in every JSON reader."""
LONGEST = 2**23
"""Characters of the longest text."""
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters, halves of characters, and what turns the direction of a text: none belongs on a screen."""


def shown(value: Any) -> str:
    """The value, short and safe to print."""
    text = ascii(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"


def refuse(at: str, value: Any, wanted: str) -> None:
    raise LuthierError(f"{at} is {shown(value)}; expected {wanted}.")


def text(most: int, pattern: str = "", wanted: str = "") -> Check:
    """A string of up to `most` characters, none of them hidden, that matches `pattern`."""

    def one(at: str, value: Any) -> None:
        if not isinstance(value, str) or len(value) > most or HIDDEN.search(value):
            refuse(at, value, f"a plain text of at most {most} characters")
        if pattern and not re.fullmatch(pattern, value, re.ASCII):
            refuse(at, value, wanted)

    return one


def whole(low: int, high: int = WHOLE) -> Check:
    """A whole number within bounds."""

    def one(at: str, value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(at, value, f"a whole number from {low} to {high}")

    return one


def number(at: str, value: Any) -> None:
    """A finite number."""
    if (type(value) is int and abs(value) <= WHOLE) or (type(value) is float and math.isfinite(value)):
        return
    refuse(at, value, "a finite number")


def boolean(at: str, value: Any) -> None:
    """True or false."""
    if type(value) is not bool:
        refuse(at, value, "true or false")


def plain(at: str, value: Any, depth: int = 0) -> None:
    """Any JSON value without NaN, absurd numbers, hidden characters and deep nesting."""
    if depth > 16:
        refuse(at, value, "at most 16 levels of nesting")
    if isinstance(value, dict):
        for key, each in value.items():
            ANY_TEXT(f"a name in {at}", key)
            plain(f"{at}.{key[:60]}", each, depth + 1)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            plain(f"{at}[{index}]", each, depth + 1)
    elif isinstance(value, str):
        ANY_TEXT(at, value)
    elif value is not None and type(value) is not bool:
        number(at, value)


ANY_TEXT = text(LONGEST)


def maybe(each: Check) -> Check:
    """Null, or what `each` takes."""
    return lambda at, value: None if value is None else each(at, value)


def many(each: Check, low: int, high: int) -> Check:
    """A list of so many values."""

    def one(at: str, value: Any) -> None:
        if not isinstance(value, list) or not low <= len(value) <= high:
            refuse(at, value, f"a list of {low} to {high}")
        for index, item in enumerate(value):
            each(f"{at}[{index}]", item)

    return one


def mapping(each: Check, most: int) -> Check:
    """An object with up to `most` names of any kind."""

    def one(at: str, value: Any) -> None:
        if not isinstance(value, dict) or len(value) > most:
            refuse(at, value, f"an object of at most {most} names")
        for key, item in value.items():
            ANY_TEXT(f"a name in {at}", key)
            each(f"{at}.{key[:60]}", item)

    return one


def record(needed: Mapping[str, Check], further: Mapping[str, Check] | None = None) -> Check:
    """An object with just these names; those of `further` may be missing."""
    known = {**needed, **(further or {})}

    def one(at: str, value: Any) -> None:
        if not isinstance(value, dict):
            refuse(at, value, "an object")
        for key in (*needed, *value):
            if key not in value or key not in known:
                refuse(f"a name in {at or 'the spec'}", key, f"exactly {', '.join(needed)}")
        for key, item in value.items():
            known[key](f"{at}.{key}" if at else key, item)

    return one
