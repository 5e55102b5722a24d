"""Docstrings read from source: of fields, which Python drops, and of components without importing them."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.core.contracts.component import Component, file_of, find, packages


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Returns `{field: docstring on one line}` of a dataclass, inherited fields included."""
    return {field: text for parent in reversed(cls.__mro__) for field, text in _own_docs(parent).items()}


@functools.cache
def _own_docs(cls: type) -> dict[str, str]:
    """Those of the fields that the class itself declares; their classes have many parents in common."""
    if not vars(cls).get("__annotations__"):
        return {}
    return dict(_documented(ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]))


def _documented(node: ast.stmt) -> Iterator[tuple[str, str]]:
    body = node.body if isinstance(node, ast.ClassDef) else []
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            words = _string(text.value) if isinstance(text, ast.Expr) else None
            if words is not None:
                yield field.target.id, " ".join(words.split())


def _string(node: ast.expr | None) -> str | None:
    constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if constant else None  # type: ignore[union-attr]


@dataclass(frozen=True)
class Card:
    """What a list tells of a component."""

    name: str
    equation: str
    """First line of the docstring."""
    paper: str
    defines: frozenset[str]
    """Names of the functions that the class itself defines."""


def card(axis: str, name: str) -> Card:
    """Returns the card of the component in the file `name`, read without importing what it imports (torch).

    A file whose class cannot be read off its source is imported; raises `LuthierError` if it holds none.
    """
    file = file_of(axis, name)
    node = _component(file.path, file.name)
    if node is None:
        found = find(axis, name)
        own = frozenset(name for name, value in vars(found).items() if inspect.isfunction(value))
        return Card(found.name(), found.equation(), found.paper, own)
    doc = ast.get_docstring(node) or ""
    own = frozenset(part.name for part in node.body if isinstance(part, ast.FunctionDef))
    return Card(file.name, doc.split("\n", 1)[0], _assigned(node.body, "paper") or Component.paper, own)


def axes() -> dict[str, str]:
    """Returns `{axis: the question it answers}`, as `component.axes` finds them, without importing any."""
    found = {name: _question(package) for name, package in packages().items()}
    return {name: question for name, question in sorted(found.items()) if question is not None}


def _question(package: str) -> str | None:
    spec = importlib.util.find_spec(package)
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8")) if spec and spec.origin else None
    return None if tree is None else _assigned(tree.body, "AXIS")


def _component(file: Path, name: str) -> ast.ClassDef | None:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # of bytes that are no UTF-8, or NULs
        return None
    wanted = name.replace("_", "")
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return next((node for node in classes if node.name.lower() == wanted), None)


def _assigned(body: list[ast.stmt], name: str) -> str | None:
    """The string that a body assigns to `name`."""
    for part in body:
        targets = part.targets if isinstance(part, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return _string(part.value)  # type: ignore[union-attr]
    return None
