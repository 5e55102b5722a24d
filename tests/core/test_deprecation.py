"""Deprecations: each says what to use, and none outlives the version that it names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import luthier
from luthier.core.deprecation import LuthierDeprecationWarning, deprecated
from luthier.core.version import __version__

ROOT = Path(luthier.__file__).parent


def calls() -> list[tuple[str, str]]:
    """(place, version) of every deprecation in the source."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "deprecated":
                until = next(k.value for k in node.keywords if k.arg == "until")
                assert isinstance(until, ast.Constant), f"{file}:{node.lineno}: until is a version, written out"
                found.append((f"{file.relative_to(ROOT)}:{node.lineno}", str(until.value)))
    return found


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_it_says_what_to_use_and_where_it_was_used():
    def former():
        deprecated("former", "latter", until="99.0")

    with pytest.warns(LuthierDeprecationWarning, match=r"former is deprecated .* Luthier 99.0; use latter") as seen:
        former()
    assert seen[0].filename == __file__


def test_none_has_outlived_its_version():
    assert calls()
    late = [f"{place} was to go with {until}" for place, until in calls() if version(until) <= version(__version__)]
    assert not late, "\n".join(late)
