"""Linear layers whose owner reads their weights itself: an adapter there acts on what is read."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn

LOOKS = {"dtype", "device", "shape", "size", "ndim", "dim", "numel", "requires_grad", "is_floating_point"}
"""What is asked of a tensor without its values."""


def is_read(model: nn.Module, path: str) -> bool:
    """Returns whether the module that holds the one at `path` computes with its weight or bias itself."""
    owner, _, name = path.rpartition(".")
    return bool(owner) and name in _read_by(type(model.get_submodule(owner)))


@functools.cache
def _read_by(cls: type[nn.Module]) -> frozenset[str]:
    """The children whose weight or bias the methods of a class read, by its source; none where there is no source."""
    methods = (
        f for each in cls.__mro__ if issubclass(each, nn.Module) and each is not nn.Module for f in _passes(each)
    )
    return frozenset(name for method in methods for name in _reads(method))


def _passes(cls: type) -> Iterator[object]:
    """The methods that a pass may run: those of building and of fresh weights are none."""
    return (f for name, f in vars(cls).items() if inspect.isfunction(f) and "init" not in name and "reset" not in name)


def _reads(method: object) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method))))  # type: ignore[arg-type]
    except (OSError, SyntaxError, TypeError):
        return
    looks = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in LOOKS}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    looks |= {id(each) for call in calls if call.func.id in ("isinstance", "hasattr") for each in call.args}  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("weight", "bias") and id(node) not in looks:
            child = node.value
            if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id == "self":
                yield child.attr
