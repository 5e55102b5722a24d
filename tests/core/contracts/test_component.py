"""Components: found by discovery, checked by their annotations, travelling through JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, Optional

import pytest

import luthier as lt
from luthier.core.contracts.component import Component, axes, find, names


@dataclass(frozen=True)
class Sample(Component):
    """one line"""

    rank: int = 1
    """A number."""
    scale: float = 1.0
    """Another."""
    kind: Literal["a", "b"] = "a"
    """A choice."""
    name_of: Optional[str] = None  # noqa: UP045  a plugin may still be written so
    """A word or none."""
    sizes: tuple[int, ...] = (1, 2)
    """Some numbers."""
    on: bool = False
    """A switch."""


def test_values_travel_through_json():
    made = Sample(rank=3, scale=2, kind="b", name_of="x", sizes=(4,), on=True)
    assert Sample.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert Sample.equation() == "one line" and Sample.name() == "sample"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rnk": 3}, "did you mean 'rank'"),
        ({"rank": "3"}, "expected int"),
        ({"rank": True}, "expected int"),
        ({"rank": 2.0}, "expected int"),
        ({"scale": "1"}, "expected float or int"),
        ({"kind": "c"}, "expected one of 'a', 'b'"),
        ({"name_of": 1}, "expected str or none"),
        ({"sizes": 1}, "expected tuple or list"),
        ({"on": 1}, "expected bool"),
    ],
)
def test_ill_typed_values_are_refused(values, message):
    with pytest.raises(lt.LuthierError, match=message):
        Sample.from_dict(values)


def test_every_file_of_an_axis_holds_its_component():
    assert {"forms", "objectives", "selections"} <= set(axes())
    for axis in axes():
        for name in names(axis):
            assert find(axis, name).name() == name
            assert not name.startswith("_")


def test_names_are_found_whatever_their_case_and_missed_with_near_ones():
    assert find("forms", "LoReFT") is lt.LoReFT and find("forms", "lo-re-ft") is lt.LoReFT
    with pytest.raises(lt.LuthierError, match="did you mean 'wegeft'"):
        find("forms", "wegeft2")
    with pytest.raises(AttributeError):
        _ = lt.NoSuchForm


@pytest.mark.parametrize(
    "make",
    [
        lambda: lt.LoRA(rank=0),
        lambda: lt.LoRA(alpha=float("nan")),
        lambda: lt.LoRA(dropout=1.0),
        lambda: lt.Bottleneck(dim=-1),
        lambda: lt.WeGeFT(share="layer"),
        lambda: lt.DoRA(scaling="sqrt"),
    ],
)
def test_impossible_hyper_parameters_are_refused(make):
    with pytest.raises(lt.LuthierError, match="expected"):
        make()
