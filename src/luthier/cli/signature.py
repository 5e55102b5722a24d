"""Dataclasses as signatures: fields become flags, their docstrings the help, and values find their way back."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from luthier.core.contracts.component import hints

C = TypeVar("C")
Given = Mapping[type, Mapping[str, Any]]
"""The flags that the user gave, by the dataclass that they set."""


@dataclass(frozen=True)
class Flags:
    """A dataclass whose fields become flags of a command."""

    cls: type
    title: str
    """The heading in the help."""
    skip: tuple[str, ...] = ()
    """Fields that are no flags."""


def nothing() -> Callable:
    """Returns a function of its own, which does nothing."""
    return lambda: None


Places = dict[str, list[tuple[type, str]]]
"""Where the value of each parameter goes: a field of a dataclass, or the same of several of one name."""


def signature_of(cls: type, settings: Iterable[Flags]) -> tuple[Callable, Places]:
    """Returns a function whose signature is the command's flags, those of `settings` behind its own, and where the
    value of each parameter goes.

    Components of one name, as the ranks and the start of one paper, have a setting that both know in common.
    """
    parameters = [_parameter(cls, f, None) for f in dataclasses.fields(cls)]
    places: Places = {p.name: [(cls, p.name)] for p in parameters}
    for flags in settings:
        for field in own_first(f for f in dataclasses.fields(flags.cls) if f.name not in flags.skip):
            taken = places.get(field.name)
            if taken and taken[0][0].__name__ == flags.cls.__name__:
                taken.append((flags.cls, field.name))
                continue
            name = field.name if taken is None else f"{flags.cls.__name__.lower()}_{field.name}"
            parameters.append(_parameter(flags.cls, field, flags.title).replace(name=name))
            places[name] = [(flags.cls, field.name)]
    function = nothing()
    order = sorted(parameters, key=lambda p: p.kind)
    function.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
    return function, places


def own_first(fields: Iterable[dataclasses.Field]) -> list[dataclasses.Field]:
    """Returns the fields of a component before those that it inherits, which are keyword-only."""
    return sorted(fields, key=lambda f: bool(f.kw_only))


def _parameter(cls: type, field: dataclasses.Field, title: str | None) -> inspect.Parameter:
    from cyclopts import Parameter

    from luthier.cli.source import field_docs

    hint, default = hints(cls)[field.name][0], _default(field)
    if named := field.metadata.get("flag"):  # a component, which the command line has by its name
        hint, default = str | None, None
    more = typing.get_origin(hint) is tuple
    kind = inspect.Parameter.KEYWORD_ONLY
    if not field.kw_only and title is None:
        kind = inspect.Parameter.VAR_POSITIONAL if more else inspect.Parameter.POSITIONAL_ONLY
    told = field.metadata.get("help") or field_docs(cls).get(field.name, "")
    settings: dict[str, Any] = {"help": f"{told} {named}" if named else told}
    if title is not None:
        settings["group"] = title
    if called := field.metadata.get("called"):  # another word than the field's, which Python may not allow
        settings["name"] = called
    if field.metadata.get("several"):  # --tasks a b c, up to the next flag
        settings["consume_multiple"] = True
    if _leaves(hint) == {int}:
        settings["converter"] = _whole
    if more or (title is None and default is False):
        settings["negative"] = ()
    if default is False or default == ():
        settings["show_default"] = False
    if kind is inspect.Parameter.VAR_POSITIONAL:
        hint, default = typing.get_args(hint)[0], inspect.Parameter.empty
    note = Annotated[hint, Parameter(**settings)]  # type: ignore[valid-type]
    return inspect.Parameter(field.name, kind, default=default, annotation=note)


def _leaves(hint: Any) -> set[Any]:
    """The types that a hint is made of, without None and the tuple around them."""
    inner = [each for each in typing.get_args(hint) if each not in (type(None), Ellipsis)]
    return set().union(*map(_leaves, inner)) if inner else {hint}


def _whole(hint: Any, tokens: Sequence[Any]) -> Any:
    """Converts whole numbers; cyclopts would round 2.5 to 2 without a word."""
    from cyclopts import CoercionError, convert

    for token in tokens:
        if _fraction(token.value):
            raise ValueError(f"{token.value} is not a whole number")
    try:
        return convert(hint, [token.value for token in tokens])
    except CoercionError:
        raise ValueError(f"{' '.join(token.value for token in tokens)!r} is not a whole number") from None


def _fraction(text: str) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return math.isfinite(number) and not number.is_integer()


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty


def filled(cls: type[C], places: Places, values: Mapping[str, Any]) -> tuple[C, Given]:
    """Returns the command with the values that its own fields were given, and the values of the others."""
    given: dict[type, dict[str, Any]] = {}
    for name, value in values.items():
        for owner, field in places[name]:
            given.setdefault(owner, {})[field] = _none_if_named(owner, field, value)
    return cls(**given.pop(cls, {})), given


def _none_if_named(owner: type, field: str, value: Any) -> Any:
    """`--share none` is None where None is a choice."""
    optional = type(None) in typing.get_args(hints(owner)[field][0])
    return None if optional and isinstance(value, str) and value.lower() == "none" else value
