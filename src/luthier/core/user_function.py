"""A Python function of the user's, named as `file.py:name`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded
from luthier.core.paths import path_of


def is_function(text: str) -> bool:
    """Returns whether a text names a function in a file."""
    file, colon, name = text.rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def function_of(text: str) -> Callable[..., Any]:
    """Returns the function `name` of `file.py:name`, which is run for that.

    Raises `LuthierError` where it is not there, and for what the file raises on being run.
    """
    file, _, name = text.rpartition(":")
    path = path_of(file)
    held = names_in(path)
    found = held.get(name)
    if not callable(found):
        known = [key for key, value in held.items() if callable(value) and not key.startswith("_")]
        raise LuthierError(f"{path} has no function {name!r}{near(name, known)} It has: {', '.join(known) or 'none'}.")
    return found


def names_in(path: Path) -> dict[str, Any]:
    """Returns what a Python file of the user's defines, by name; it is run for that."""
    if not path.is_file():
        there = [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise LuthierError(f"there is no file {path}{near(path.name, there)}")
    spec = importlib.util.spec_from_file_location(f"luthier_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with guarded(f"{path} cannot be run"):
        spec.loader.exec_module(module)
    return vars(module)
