"""The reference of `lt.*` in docs/api, written from `luthier.core.public_names`: `python -m luthier.cli.docs`.

Each sub-package of `core` has a page, every other package a section of one more. A page lists the names with their
first sentences; below, mkdocstrings puts signature and docstring where the page has `:::`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Any

from luthier.cli.markdown import line, row
from luthier.core.public_names import PUBLIC

VERBS = "verbs"
"""The page of all packages beside `core`."""
HEAD = """# Python reference

Everything that is stable in Python, as `lt.NAME` after `import luthier as lt`. The methods (`lt.LoRA`,
`lt.ranks.EVA`) are on [a page of their own](../methods.md).
"""


@dataclass(frozen=True)
class Name:
    """A public name."""

    name: str
    module: str
    """Where it is defined."""
    own: str
    """What it is called there."""

    @property
    def path(self) -> str:
        """Where mkdocstrings finds it, which is also its anchor on the page."""
        return f"{self.module}.{self.own}"

    @property
    def summary(self) -> str:
        """The first sentence of its docstring."""
        value = getattr(importlib.import_module(self.module), self.own)
        text = inspect.cleandoc((value.__doc__ if _has_docstring(value) else _string_below(self)) or "")
        return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".:") + "."

    @property
    def package(self) -> str:
        """The package that it belongs to: a sub-package of `core`, or a package directly below `luthier`."""
        parts = self.module.split(".")
        return ".".join(parts[1:3] if parts[1] == "core" and len(parts) > 3 else parts[1:2])

    @property
    def page(self) -> str:
        """The page that it is on."""
        return self.package.removeprefix("core.") if self.package.startswith("core.") else VERBS


def _has_docstring(value: Any) -> bool:
    return inspect.isfunction(value) or (isinstance(value, type) and not isinstance(value, GenericAlias))


def _string_below(name: Name) -> str | None:
    """The string below the assignment of a constant or an alias."""
    body = ast.parse(inspect.getsource(importlib.import_module(name.module))).body
    for node, after in itertools.pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(each, ast.Name) and each.id == name.own for each in targets):
            text = after.value if isinstance(after, ast.Expr) else None
            return str(text.value) if isinstance(text, ast.Constant) else None
    return None


def public_names() -> list[Name]:
    """Returns every public name, with the module that defines it where the public one hands it on."""
    return [_defined(name, *where) for name, where in PUBLIC.items()]


def _defined(name: str, module: str, own: str) -> Name:
    value = getattr(importlib.import_module(module), own)
    return Name(name, value.__module__, value.__name__) if _has_docstring(value) else Name(name, module, own)


def api_pages() -> dict[str, str]:
    """Returns `{file in docs/api: its text}`."""
    packages: dict[str, list[Name]] = {}
    for each in public_names():
        packages.setdefault(each.package, []).append(each)
    by_page: dict[str, list[str]] = {}
    for package in sorted(packages):
        by_page.setdefault(packages[package][0].page, []).append(package)
    made = {f"{page}.md": "\n".join(_page(page, found, packages)) for page, found in by_page.items()}
    return made | {"index.md": "\n".join(_index(public_names()))}


def _page(page: str, found: Sequence[str], packages: dict[str, list[Name]]) -> Iterator[str]:
    if page == VERBS:
        yield "# Commands, data and models\n\nWhat the commands do, as functions, and what they read.\n"
    for package in found:
        level = "##" if page == VERBS else "#"
        yield f"{level} {package.rpartition('.')[2].capitalize()}\n"
        yield f"{_opening(package)}\n"
        yield from _section(packages[package], f"{level}#")


def _opening(package: str) -> str:
    """The first sentence of a package's docstring."""
    doc = importlib.import_module(f"luthier.{package}").__doc__ or ""
    return " ".join(doc.partition("\n\n")[0].split())


def _section(names: Sequence[Name], heading: str) -> Iterator[str]:
    yield from row("name", "what it is")
    yield from (line(f"[`lt.{each.name}`](#{each.path})", each.summary) for each in names)
    for each in names:
        yield f"\n::: {each.path}\n    options:\n      heading: lt.{each.name}\n      toc_label: {each.name}"
        yield f"      heading_level: {len(heading)}"
    yield ""


def _index(names: Sequence[Name]) -> Iterator[str]:
    yield HEAD
    yield from row("name", "what it is")
    ordered = sorted(names, key=lambda each: (each.name.lower(), each.name))
    yield from (line(f"[`lt.{each.name}`]({each.page}.md#{each.path})", each.summary) for each in ordered)
    yield ""
