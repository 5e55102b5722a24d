"""Chat templates within bounds: one that loops or grows without end is refused, instead of keeping the process.

transformers renders templates in jinja's sandbox, which bounds neither time nor memory. Here a conversation is rendered
once in a sandbox of the same filters and globals that counts (loops, calls) and looks at sizes before it makes
something of them; what passes is then rendered by transformers itself.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from luthier.data.budget import Budget, check_arguments, check_format, check_operator, left, steps
from luthier.data.expanded import TooMuch
from luthier.data.messages import THOUGHTS


class Generator(CodeGenerator):
    """Python of a template, with `~` through the environment."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.built(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.built(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx != "load":  # names that are assigned to
            return super().visit_Tuple(node, frame)
        self.write("environment.built(")
        super().visit_Tuple(node, frame)
        self.write(")")


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
        texts = [each for each in parts if self.built(each) is each]
        return self.built("".join(map(str, texts)))

    def built(self, made: Any) -> Any:
        """What was made, if it is not too large."""
        left.get().size(made)
        return made

    def call_binop(self, context: Any, operator: str, a: Any, b: Any) -> Any:
        """Returns an operator, if what it makes is not too large."""
        check_operator(operator, a, b)
        return super().call_binop(context, operator, a, b)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
        """Returns a call, counted, if what it makes is not too large."""
        budget, owner = left.get(), getattr(function, "__self__", None)
        budget.step()
        budget.size(*(each for each in (*args, *kwargs.values()) if not isinstance(each, Namespace)))
        if isinstance(owner, str | bytes):
            args = tuple(check_arguments(function.__name__, (owner, *args), kwargs)[1:])
        budget.enter(isinstance(function, Macro))
        made = super().call(context, function, *args, **kwargs)
        budget.enter(-isinstance(function, Macro))
        return made if isinstance(made, Namespace) else self.built(made)

    def wrap_str_format(self, value: Any) -> Any:
        """Returns a text's own `format`."""
        made = super().wrap_str_format(value)
        if made is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__, "{", [*args, *kwargs.values()])
            return made(*args, **kwargs)

        return formatted


def _written(value: Any) -> Any:
    left.get().size(value)
    text = str(value)
    left.get().write(len(text))
    return value


def _counted(values: Any) -> Any:
    """The values, each a step; what has a length keeps one, for `loop.length`."""
    return _Counted(values) if isinstance(values, list | tuple | range | str | dict) else steps(values)


class _Counted:
    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return steps(self.values)


def _sized(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, counted, its arguments looked at first."""

    @functools.wraps(make)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        left.get().step()
        made = make(*check_arguments(name, args, kwargs), **kwargs)
        left.get().size(made)
        return made

    return filtered


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    told = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
    if indent is None and separators is None:
        return json.dumps(value, **told)
    parts, size = [], 0
    for part in json.JSONEncoder(**told).iterencode(value):  # in pieces, as what stands between items may be long
        size = left.get().within(size + len(part))
        parts.append(part)
    return "".join(parts)


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


def _heard(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn as transformers gives it to templates: its thought under the first two of the names."""
    said = {key: value for key, value in turn.items() if value is not None}
    thought = next((said[name] for name in THOUGHTS if name in said), None)
    return said if thought is None else {"thinking": thought, **said, "reasoning_content": thought}


def check_bounds(source: str, variables: Mapping[str, Any], seconds: float | None = None) -> None:
    """Renders a template and keeps nothing of it; raises `TooMuch` where it goes beyond the bounds, and whatever else
    jinja raises on it: what fails here is not tried without bounds."""
    variables = {**variables, "messages": [_heard(turn) for turn in variables["messages"]]}
    token = left.set(Budget.of(source, seconds))
    try:
        for chunk in _compiled(source).generate(**variables):
            left.get().write(len(chunk))
    finally:
        left.reset(token)
