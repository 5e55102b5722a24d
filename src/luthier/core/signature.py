"""Functions that take the fields of dataclasses one by one, without listing them again."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from luthier.core.errors import LuthierError, near

F = TypeVar("F", bound=Callable[..., Any])


def takes(*classes: type, but: Iterable[str] = ()) -> Callable[[F], F]:
    """Returns a decorator of functions with `**fields`: these are the fields of `classes`, except those of `but`.

    Help and editors show them one by one, and another name raises `LuthierError` with near ones; what type checkers
    see is a stub that `make docs` writes. A field with a default that is made anew each time is optional there, and
    None means that default.
    """

    def shown(function: F) -> F:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        found = {f.name: f for cls in classes for f in dataclasses.fields(cls)}
        more = [_parameter(f) for name, f in found.items() if name not in (*but, *signature.parameters)]
        names = [each.name for each in (*own, *more)]

        @functools.wraps(function)
        def checked(*values: Any, **fields: Any) -> Any:
            for name in fields:
                if name not in names:
                    known = ", ".join(names)
                    raise LuthierError(f"{function.__name__} takes no {name!r}{near(name, names)} It takes: {known}.")
            return function(*values, **fields)

        checked.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return shown


def _parameter(field: dataclasses.Field) -> inspect.Parameter:
    hint, default = str(field.type), field.default
    if field.metadata.get("named"):  # a component, for which its name may stand
        hint = f"{hint} | str"
    if default is dataclasses.MISSING:
        hint, default = hint if "None" in hint else f"{hint} | None", None
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
