"""Chat templates within bounds: one that loops or grows without end is refused, instead of keeping the process.

transformers renders templates in jinja's sandbox, which bounds neither time nor memory. Here a conversation is rendered
once in a sandbox of the same filters and globals that counts (loops, calls) and looks at sizes before it makes
something of them; what passes is then rendered by transformers itself.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 10.0
"""Of one rendering."""
CHARACTERS = 2**24
"""Of any text that a template makes, and of all that it writes."""
STEPS = 1_000_000
"""Turns of loops and calls; fewer in a long template, so that what they write stays within a gigabyte."""
WIDEST = 1_000
"""Columns that a filter or method may pad to, and spaces it may indent by."""
PADDING = ("center", "indent", "batch", "slice", "wordwrap", "tojson", "ljust", "rjust", "zfill", "expandtabs")
"""Filters and methods whose whole-number arguments make text."""
WIDTH = re.compile(r"\d{4,}|\*")
"""A width in a format that is above `WIDEST`, or that an argument gives."""


class TooMuch(TemplateError):
    """A template goes beyond the bounds."""


@dataclass
class Budget:
    """What is left of a rendering."""

    steps: int
    until: float
    characters: int

    def step(self) -> None:
        """One turn of a loop, or one call."""
        self.steps -= 1
        if self.steps < 0:
            raise TooMuch("it takes more turns of its loops than a template may")
        self.look()

    def look(self) -> None:
        """Looks at the clock."""
        if time.monotonic() > self.until:
            raise TooMuch("it takes longer than a template may")

    def write(self, size: int) -> None:
        """So many characters are written."""
        self.characters -= size
        if self.characters < 0:
            raise TooMuch("it writes more than a template may")


_budget: ContextVar[Budget] = ContextVar("what is left of a rendering")


class Generator(CodeGenerator):
    """Python of a template, with `~` through the environment."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")


class Generation(Extension):
    """The tag `{% generation %}` of transformers, which marks what the assistant says."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Bounded(ImmutableSandboxedEnvironment):
    """The sandbox of jinja with a `Budget`."""

    code_generator_class = Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
            finalize=_written,
            cache_size=0,
        )
        self.filters["tojson"] = _tojson
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "lipsum": _no_filler}
        self.filters = {name: _sized(name, each) for name, each in self.filters.items()}
        self.filters["_counted"] = _counted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        return tree

    def joined(self, parts: Iterable[Any]) -> str:
        """Texts one after the other."""
        texts = [str(each) for each in parts]
        _within(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Returns an operator, if what it makes is not too large."""
        _check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        """Returns a call, counted, if what it makes is not too large."""
        _budget.get().step()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            _check_call(function.__name__, (owner, *args), kwargs)
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """Returns a text's own `format`."""
        if isinstance(owner := getattr(value, "__self__", None), str) and WIDTH.search(owner):
            raise TooMuch("it formats to a width that a template may not")
        return super().wrap_str_format(value)


def _within(size: int) -> None:
    _budget.get().look()
    if size > CHARACTERS:
        raise TooMuch("it makes a text longer than a template may")


def _written(value: Any) -> Any:
    text = str(value)
    _within(len(text))
    _budget.get().write(len(text))
    return value


def _counted(values: Any) -> Any:
    """The values, each a step; what has a length keeps one, for `loop.length`."""
    return _Counted(values) if isinstance(values, list | tuple | range | str | dict) else _steps(values)


def _steps(values: Iterable[Any]) -> Iterator[Any]:
    for each in values:
        _budget.get().step()
        yield each


class _Counted:
    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return _steps(self.values)


def _check_operator(operator: str, left: Any, right: Any) -> None:
    for one, other in ((left, right), (right, left)):
        if operator == "*" and isinstance(one, str | list | tuple) and isinstance(other, int):
            _within(len(one) * max(other, 0))
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        _within(len(left) + len(right))
    if operator == "%" and isinstance(left, str) and WIDTH.search(left):
        raise TooMuch("it formats to a width that a template may not")
    if isinstance(left, int) and isinstance(right, int):
        bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * abs(right)}.get(operator, 0)
        if bits > WIDEST:
            raise TooMuch("it computes a larger number than a template may")


def _check_call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Looks at the arguments of a filter, or of a text's method, before what they would make is made."""
    given = [*args, *kwargs.values()]
    if name in PADDING and any(isinstance(each, int) and each > WIDEST for each in given):
        raise TooMuch(f"it gives {name} a larger number than a template may")
    texts = [each for each in given if isinstance(each, str)]
    if name == "replace" and len(texts) > 2:
        _within(len(texts[0]) + (texts[0].count(texts[1]) if texts[1] else len(texts[0]) + 1) * len(texts[2]))
    if name == "format" and texts and WIDTH.search(texts[0]):
        raise TooMuch("it formats to a width that a template may not")
    if name == "join":
        lists = [each for each in given if isinstance(each, list | tuple | range | _Counted)]
        between = sum(len(each) for each in given if isinstance(each, str))
        for each in lists:
            _within(sum(len(str(item)) + between for item in each))


def _sized(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, counted, its arguments looked at first."""

    @functools.wraps(make)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        _budget.get().step()
        _check_call(name, tuple(each for each in args if isinstance(each, str | int | list | tuple | range)), kwargs)
        return make(*args, **kwargs)

    return filtered


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> str:
    raise TemplateError(str(message))


def _no_filler(*_: object, **__: object) -> str:
    raise TooMuch("it asks for filler text, which no template needs")


class _Dict:
    """`dict`, as transformers gives it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _now(form: str) -> str:
    return time.strftime(form)


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    return Bounded().from_string(source)


THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names of a turn's thoughts, of which transformers gives templates the first two."""


def _heard(turn: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in turn.items() if value is not None}
    thought = next((said[name] for name in THOUGHTS if name in said), None)
    return said if thought is None else {"thinking": thought, **said, "reasoning_content": thought}


def check_bounds(source: str, variables: Mapping[str, Any], seconds: float | None = None) -> None:
    """Renders a template and keeps nothing of it; raises `TooMuch` where it goes beyond the bounds, and whatever else
    jinja raises on it: what fails here is not tried without bounds."""
    variables = {**variables, "messages": [_heard(turn) for turn in variables["messages"]]}
    steps = min(STEPS, 2**30 // max(1, len(source)))
    token = _budget.set(Budget(steps, time.monotonic() + (SECONDS if seconds is None else seconds), CHARACTERS))
    try:
        for chunk in _compiled(source).generate(**variables):
            _budget.get().write(len(chunk))
    finally:
        _budget.reset(token)
