"""Deprecations: each says what to use, and none outlives the version that it names."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import luthier
import luthier as lt
from luthier.core.adapters.attach import state_of
from luthier.core.deprecation import LuthierDeprecationWarning, deprecated
from luthier.core.public_names import FORMER
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


def test_former_public_names_warn_and_are_the_present_ones():
    for old, new in FORMER.items():
        with pytest.warns(
            LuthierDeprecationWarning, match=rf"lt\.{old} is deprecated .* use lt\.{new} instead"
        ) as seen:
            assert getattr(lt, old) is getattr(lt, new)
        assert seen[0].filename == __file__


def test_components_with_former_names_still_work():
    with pytest.warns(LuthierDeprecationWarning) as seen:

        class Former(lt.Form):
            noise = ("p",)
            calm = ("t",)
            whole = True
            reader = "A"

        class Start(lt.Init):
            relative = True

        class Loss(lt.Objective):
            def shares(self, counts, memory):
                return counts

    assert Former.train_only == ("p",) and Former.eval_only == ("t",) and Former.elementwise
    assert Former.down_projections == ("A",) and Start.subtract_start and Loss.part_weights is Loss.shares
    assert len(seen) == 6 and "Former.noise is deprecated" in str(seen[0].message)


def test_a_setting_may_have_a_former_name():
    @dataclass(frozen=True)
    class Noisy(lt.Form):
        noise: float = 1.0

    assert Noisy.train_only == ("dropout",)


def test_attach_takes_the_former_argument():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.warns(LuthierDeprecationWarning, match="subtract_start"):
        lt.attach(model, lt.LoRA(rank=2), "0", relative=True)
    assert state_of(model).components[0].subtract_start


def test_none_has_outlived_its_version():
    assert calls()
    late = [f"{place} was to go with {until}" for place, until in calls() if version(until) <= version(__version__)]
    assert not late, "\n".join(late)
