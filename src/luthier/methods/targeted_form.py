"""Several forms of one adapter, each with its sites, as recipes, flags and `run.json` store them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.component import check_type, find
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError, near
from luthier.core.guard import reason
from luthier.core.toml import tomllib

KEYS = ("method", "where", "form")


@dataclass(frozen=True)
class TargetedForm:
    """A form and the selector of the sites that it is attached to."""

    form: Form
    where: str | None = None
    """Sites that it is attached to. Default: the form's own."""

    @property
    def place(self) -> str:
        """The selector: the one given, or the form's own."""
        return self.form.where if self.where is None else self.where

    def to_dict(self) -> dict[str, Any]:
        """Returns `{"method", "where", "form"}`, the form's settings in full."""
        return {"method": self.form.name(), "where": self.where, "form": self.form.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> TargetedForm:
        """Returns the inverse; `where` and `form` may be left out. Raises `LuthierError` for anything else."""
        if not isinstance(values, dict):
            raise LuthierError(f'a further form is {values!r}; expected a table such as {{method = "bottleneck"}}.')
        for key in values:
            if key not in KEYS:
                raise LuthierError(f"a further form has no {key!r}{near(key, KEYS)} It has: {', '.join(KEYS)}.")
        method, where, settings = values.get("method"), values.get("where"), values.get("form", {})
        for key, value, hint in (("method", method, str), ("where", where, str | None), ("form", settings, dict)):
            check_type(f"{key} of a further form", value, hint)
        return cls(find("forms", str(method), Form).from_dict(settings), where)

    def to_toml(self) -> str:
        """Returns an inline table, with the settings that differ from their defaults."""
        own = {f.name: getattr(self.form, f.name) for f in dataclasses.fields(self.form)}
        told = {f.name: own[f.name] for f in dataclasses.fields(self.form) if own[f.name] != f.default}
        where = {} if self.where is None else {"where": self.where}
        return inline({"method": self.form.name(), **where, "form": told})


def inline(value: Any) -> str:
    """A value as TOML has it on one line; JSON writes strings, numbers and booleans alike."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(inline, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_targeted_forms(text: str) -> tuple[TargetedForm, ...]:
    """Returns the forms of `[{method = …, where = …, form = {…}}, …]`; one table may stand without brackets."""
    try:
        found = tomllib.loads(f"also = {text}")["also"]
    except Exception as error:
        raise LuthierError(
            f"{text[:200]!r} is not a list of forms: {reason(error, bare=True)}. Write "
            '[{method = "bottleneck", where = "output(mlp)", '
            "form = {dim = 512}}]."
        ) from None
    return tuple(map(TargetedForm.from_dict, found if isinstance(found, list) else [found]))
