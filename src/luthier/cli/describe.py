"""Descriptions of components, for `luthier explain` and docs/methods.md."""

from __future__ import annotations

import inspect
import typing
from dataclasses import MISSING, dataclass
from typing import Any

from luthier.cli.signature import own_first
from luthier.cli.source import axes, field_docs
from luthier.core.contracts.component import Component, find, names
from luthier.core.errors import LuthierError, near

EDIT_KINDS = {
    "pre": "edits what enters a layer: x̂ = f(x), y = layer(x̂)",
    "post": "edits what leaves a place: ŷ = f(x, y)",
    "weight": "changes the tensor itself: Ŵ = f(W)",
    "cache": "puts keys and values before those of the attention",
    "inside": "runs a module with other functions in place of its linear layers: ŷ = f(x, run)",
    "aside": "keeps a state beside the blocks, which is added to the last one's output: a' = f(h, a)",
}
KINDS = {
    "affine": "linear layers",
    "stream": "activations that leave a module",
    "input": "activations that enter a module",
    "embedding": "embedding tables",
    "cache": "keys and values of an attention",
    "param": "parameters themselves",
}


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter as it is shown to a reader."""

    name: str
    type: str
    default: Any
    doc: str


def locate(name: str) -> list[tuple[str, type[Component]]]:
    """Finds the (axis, class) of every component `name`; an unknown name raises with near ones."""
    wanted = name.lower().replace("-", "").replace("_", "")
    known = [(axis, each) for axis in axes() for each in names(axis)]
    found = [(axis, find(axis, each)) for axis, each in known if each.replace("_", "") == wanted]
    if not found:
        listed = sorted({each for _, each in known})
        raise LuthierError(f"nothing is named {name!r}{near(name, listed)} There are: {', '.join(listed)}.")
    return found


def settings_of(cls: type[Component]) -> list[Setting]:
    """Returns the hyper-parameters of a component, in order, with their docstrings."""
    docs = field_docs(cls)
    made = []
    known = cls.settings()
    for name in (f.name for f in own_first(field for _, field in known.values())):
        hint, field = known[name]
        default = None if field.default is MISSING else field.default
        made.append(Setting(name, type_words(hint), default, docs.get(name, "")))
    return made


def type_words(hint: Any) -> str:
    """Describes a type: `str | None` is "str or none", and choices are listed."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"one {type_words(typing.get_args(hint)[0])} or more"
    if options := typing.get_args(hint):
        return " or ".join(map(type_words, options))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def body(cls: type[Component]) -> str:
    """Returns the docstring below the equation."""
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[2].strip()


def facts(cls: type[Component]) -> dict[str, str]:
    """Returns facts about a form, a decoding or a format beyond its settings; of other components, only the source."""
    from luthier.core.contracts.decoding import Decoding
    from luthier.core.contracts.form import Form
    from luthier.core.contracts.format import Format

    found = {"paper": cls.paper} | ({"family": cls.family} if cls.family else {})
    if issubclass(cls, Decoding):
        return found | {f"model `{role}`": told for role, told in cls.roles.items()}
    if issubclass(cls, Format):
        ways = [way for way, has in (("read", cls.reads()), ("written", cls.writes())) if has]
        return found | {"can be": " and ".join(ways)}
    if not issubclass(cls, Form):
        return found
    return found | {
        "kind of edit": f"{cls.edit_kind}: {EDIT_KINDS.get(cls.edit_kind, '')}",
        "acts on": ", ".join(KINDS[kind] for kind in cls.kinds),
        "default where": cls.where,
        "learning rate": f"{cls.lr:g} by default",
        "initialised as": "a no-op: the model is unchanged" if cls.identity else "a change of the model",
        "merges": "into the weights, where it acts on layers at all positions"
        if cls.linear
        else "never, as it is not linear in its input",
    }
