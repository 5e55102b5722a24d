"""What a rendering may take: time, turns, text; and whether an operator, filter or call would take more."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from string import Formatter
from typing import Any

from jinja2.utils import Namespace

from luthier.data.expanded import Sizes, TooMuch

SECONDS = 10.0
"""Of one rendering."""
CHARACTERS = 2**24
"""Of any text that a template makes, and of all that it writes."""
STEPS = 1_000_000
"""Turns of loops and calls; fewer in a long template, so that what they write stays within a gigabyte."""
WIDEST = 1_000
"""Columns that a filter or method may pad to, and spaces it may indent by."""
DEEPEST = 64
"""Macros that may call one another: each holds texts of its own meanwhile."""
PADDING = ("center", "indent", "batch", "slice", "wordwrap", "tojson", "ljust", "rjust", "zfill", "expandtabs", "round")
"""Filters and methods whose whole-number arguments make text, or large numbers."""
CODING = ("encode", "decode")
REPEATED = {"indent": "\n", "expandtabs": "\t", "wordwrap": "", "urlize": "", "translate": ""}
"""Filters and methods that write what they are given as arguments at each of these in a text, or (empty) anywhere."""
WIDE = re.compile(r"\d{4,}")
"""A width in a format that is above `WIDEST`."""
GIVEN_WIDTH = re.compile(r"%[^%a-zA-Z]*\*")
"""One in a format of `%` that an argument gives."""
LONGEST = 2**17
"""Characters of a template: those in use have some 30,000 at most, and compiling takes its time before any bound."""


@dataclass
class Budget:
    """What is left of a rendering."""

    steps: int
    until: float
    characters: int
    sizes: Sizes
    depth: int = 0
    """Macros that are under way."""

    @classmethod
    def of(cls, source: str, seconds: float | None) -> Budget:
        """Returns what a template may take."""
        if len(source) > LONGEST:
            raise TooMuch(f"it has {len(source):,} characters, more than a template may ({LONGEST:,})")
        steps = min(STEPS, 2**30 // max(1, len(source)))
        return cls(steps, time.monotonic() + (SECONDS if seconds is None else seconds), CHARACTERS, Sizes())

    def size(self, *values: Any) -> int:
        """Returns how much text there is in values; raises where it is more than a template may make."""
        self.look()
        return self.within(sum(self.sizes.of(value, CHARACTERS) for value in values))

    def within(self, size: int) -> int:
        """Returns the size of something that is to be made, if a template may make it."""
        if size > CHARACTERS:
            raise TooMuch("it makes a text or a list longer than a template may")
        return size

    def step(self) -> None:
        """One turn of a loop, or one call."""
        self.steps -= 1
        if self.steps < 0:
            raise TooMuch("it takes more turns of its loops than a template may")
        self.look()

    def enter(self, more: int) -> None:
        """So many more macros are under way."""
        self.depth += more
        if self.depth > DEEPEST:
            raise TooMuch(f"its macros call one another {DEEPEST} deep, more than a template may")

    def look(self) -> None:
        """Looks at the clock."""
        if time.monotonic() > self.until:
            raise TooMuch("it takes longer than a template may")

    def write(self, size: int) -> None:
        """So many characters are written."""
        self.characters -= size
        if self.characters < 0:
            raise TooMuch("it writes more than a template may")


GIVEN = (str, int, list, tuple, range, dict, Namespace)
"""What filters and methods are given by a template; others are jinja's own."""
left: ContextVar[Budget] = ContextVar("what is left of a rendering")


def steps(values: Iterable[Any]) -> Iterator[Any]:
    """Yields the values, each of which is a step."""
    for each in values:
        left.get().step()
        yield each


def check_operator(operator: str, a: Any, b: Any) -> None:
    """Raises for an operator that would make too much."""
    size, within = left.get().size, left.get().within
    for one, other in ((a, b), (b, a)):
        if operator == "*" and isinstance(one, str | list | tuple) and isinstance(other, int):
            within(size(one) * max(other, 0))
    if operator == "+" and isinstance(a, str | list | tuple) and isinstance(b, str | list | tuple):
        size(a, b)
    if operator == "%" and isinstance(a, str):
        check_format(a, "%", [b] if isinstance(b, dict) else [])
        size(a, b)
    if isinstance(a, int) and isinstance(b, int):
        bits = {"*": a.bit_length() + b.bit_length(), "**": a.bit_length() * abs(b)}.get(operator, 0)
        if bits > WIDEST:
            raise TooMuch("it computes a larger number than a template may")


def check_format(form: str, mark: str, given: Iterable[Any]) -> None:
    """Raises for a format that pads too wide, or may write what it is given at too many marks."""
    if _wide(form, mark) or (re.search(r"\d", form) and len(form) * WIDEST > CHARACTERS):
        raise TooMuch("it formats to a width that a template may not")
    left.get().within(len(form) + form.count(mark) * left.get().size(*given))


def _wide(form: str, mark: str) -> bool:
    """Whether a format pads too wide, or as wide as an argument says; braces are read as `str.format` reads them."""
    if mark == "%":
        return WIDE.search(form) is not None or GIVEN_WIDTH.search(form) is not None
    return any(spec and ("{" in spec or WIDE.search(spec)) for _, _, spec, _ in Formatter().parse(form))


def check_call(name: str, given: list[Any]) -> None:
    """Raises for a filter, or a text's method, that would make too much of what it is given."""
    size, within = left.get().size, left.get().within
    first = given[0] if given and isinstance(given[0], str) else ""
    if name in REPEATED and first:
        numbers = sum(each for each in given[1:] if isinstance(each, int)) if REPEATED[name] else 0
        within((first.count(REPEATED[name]) + 1) * (size(*given[1:]) + numbers))
    if name == "sum" and any(isinstance(each, list | tuple) for each in given[1:]):
        raise TooMuch("it adds up lists, which a template may not")
    if name in CODING and any(each != "utf-8" for each in given[1:]):
        raise TooMuch("it uses a coding other than utf-8, which a template may not")  # some take quadratic time
    if name in PADDING and any(isinstance(each, int) and each > WIDEST for each in given):
        raise TooMuch(f"it gives {name} a larger number than a template may")
    texts = [each for each in given if isinstance(each, str)]
    if name == "replace" and len(texts) > 2:
        within(len(first) + (first.count(texts[1]) if texts[1] else len(first) + 1) * len(texts[2]))
    if name == "format" and texts:
        check_format(first, "%", given[1:])
    if name == "join":
        between = sum(map(len, texts))
        for each in given:
            if isinstance(each, list | tuple | range | dict):
                within(size(each) + len(each) * (between + 1))


def check_arguments(name: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Returns what a filter or method is given, if it may be; what is joined is made first, where it is not yet."""
    found = [list(steps(each)) if name == "join" and isinstance(each, Iterator) else each for each in args]
    given = [each for each in (*found, *kwargs.values()) if isinstance(each, GIVEN)]
    left.get().size(*given)
    check_call(name, given)
    return found
