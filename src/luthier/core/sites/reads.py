"""Linear layers whose owner reads their weights itself: an adapter there acts on what is read."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn

from luthier.core.errors import LuthierError
from luthier.core.sites.probe import may_do_more, met

LOOKS = {"dtype", "device", "shape", "size", "ndim", "dim", "numel", "requires_grad", "is_floating_point"}
"""What is asked of a tensor without its values."""


def is_read(model: nn.Module, path: str) -> bool:
    """Returns whether the module that holds the one at `path` computes with its weight or bias itself."""
    owner, _, name = path.rpartition(".")
    return bool(owner) and name in _read_by(type(model.get_submodule(owner)))


def check_maps(model: nn.Module, path: str) -> None:
    """Raises `LuthierError` for a layer that is linear by its class and does more than map what enters it."""
    if may_do_more(model.get_submodule(path)) and isinstance((met(model) or {}).get(path, (None, None))[1], str):
        raise LuthierError(
            f"{path} ({type(model.get_submodule(path)).__name__}) is linear by its class, and does more than map what "
            "enters it (a router also chooses experts), so no form can stand beside it. To change its weight, name "
            f"that: params({path}.weight)."
        )


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
