"""Writing docs/api/commands.md: every command with its arguments, flags and examples."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator

from luthier.cli.describe import type_words
from luthier.cli.markdown import line, row
from luthier.cli.parse import Command, Flags, commands
from luthier.cli.source import field_docs
from luthier.core.contracts.component import hints

HEAD = """# Command reference

Every command with the flags that it always has. A method adds its own settings as flags: `luthier train --method
loreft --help` shows them, and [the page of methods](../methods.md) too. [The commands](../commands.md) says what they
are for.
"""


def reference() -> str:
    """Returns the whole page."""
    return "\n".join([HEAD, *(text for name, cls in sorted(commands().items()) for text in _command(name, cls))])


def _command(name: str, cls: type[Command]) -> Iterator[str]:
    yield f"## luthier {name}\n"
    yield f"{inspect.cleandoc(cls.__doc__ or '')}\n"
    if cls.examples:
        yield "\n".join(["```console", *(f"$ {each}" for each in cls.examples), "```\n"])
    own = dataclasses.fields(cls)
    yield from _table("argument", cls, [field for field in own if not field.kw_only])
    yield from _table("flag", cls, [field for field in own if field.kw_only])
    for flags in cls.settings([]):
        yield from _further(flags)


def _further(flags: Flags) -> Iterator[str]:
    """Those that a dataclass of the program has; what a method adds is on its own page."""
    known = [field for field in dataclasses.fields(flags.cls) if field.name not in flags.skip]
    if known and not flags.title.startswith("Settings of "):
        yield f"**{flags.title}**\n"
        yield from _table("flag", flags.cls, known)


def _table(kind: str, cls: type, fields: list[dataclasses.Field]) -> Iterator[str]:
    if not fields:
        return
    types, docs = hints(cls), field_docs(cls)
    yield from row(kind, "type", "default", "meaning")
    for field in fields:
        name = field.name.upper() if kind == "argument" else f"--{field.name.replace('_', '-')}"
        told = field.metadata.get("help") or docs.get(field.name, "")
        hint = types[field.name][0]
        if named := field.metadata.get("flag"):  # a component, which the command line has by its name
            hint, told = str | None, f"{told} {named}"
        yield line(f"`{name}`", _type(hint), _default(field), told)
    yield ""


def _type(hint: object) -> str:
    return "switch" if hint is bool else type_words(hint)


def _default(field: dataclasses.Field) -> str:
    """In words; nothing where it says nothing, as for switches that are off."""
    silent = any(field.default is each for each in (dataclasses.MISSING, None, False)) or field.default == ()
    return "" if silent else f"`{field.default}`"
