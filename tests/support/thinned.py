"""A sample of the cases of a product; the others are marked `thorough`, so that they run when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pytest

from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.router import Routed


def thinned(left: Sequence[Any], right: Sequence[Any], share: int) -> list[Any]:
    """Every pair, of which one in `share` runs always: each of either side meets as many of the other, evenly."""
    return [_case((a, b), kept=(i + j) % share == 0) for i, a in enumerate(left) for j, b in enumerate(right)]


def kept_of(every: Sequence[str], kept: Collection[str]) -> list[Any]:
    """Every one, of which those `kept` run always."""
    return [_case((each,), kept=each in kept) for each in every]


def one_of_each_edit() -> list[str]:
    """A form for each kind of edit on each kind of site, routed or not, of tokens or of whole rows: what the library
    does for all forms of a kind is seen on it."""
    forms = {name: find("forms", name, Form) for name in names("forms")}
    kinds = {(f.edit_kind, f.kinds[0], issubclass(f, Routed), bool(f.sees)): name for name, f in forms.items()}
    return list(kinds.values())


def _case(values: tuple[Any, ...], kept: bool) -> Any:
    return pytest.param(*values, marks=() if kept else pytest.mark.thorough)
