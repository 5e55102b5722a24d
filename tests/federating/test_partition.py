"""Rows dealt to clients: each to one, by the law that the split states."""

from __future__ import annotations

from collections import Counter

import pytest

import luthier as lt
from luthier.federating import Federation
from luthier.federating.partition import partition

KINDS = [f"class {i % 5}" for i in range(1000)]


def dealt(**settings) -> list[list[int]]:
    return partition(Federation(**settings), KINDS, settings.pop("seed", 0))


def skew(parts: list[list[int]]) -> float:
    """Mean share of the most frequent class."""
    return sum(Counter(KINDS[i] for i in part).most_common(1)[0][1] / len(part) for part in parts) / len(parts)


@pytest.mark.parametrize("settings", [{"split": "iid"}, {"split": "dirichlet"}, {"split": "column", "column": "x"}])
def test_every_row_goes_to_one_client(settings):
    parts = dealt(**settings)
    assert sorted(i for part in parts for i in part) == list(range(1000))
    assert all(part == sorted(part) and part for part in parts)
    assert parts == dealt(**settings)


def test_iid_parts_differ_by_one_row_and_by_the_seed():
    parts = dealt(clients=7)
    assert {len(part) for part in parts} == {142, 143}
    assert parts != partition(Federation(clients=7), KINDS, 1)
    assert skew(parts) < 0.3


def test_dirichlet_skews_by_its_concentration():
    even, middle, skewed = (dealt(split="dirichlet", concentration=c) for c in (1000.0, 1.0, 0.1))
    assert skew(even) < 0.25 < skew(middle) < skew(skewed)
    assert skew(skewed) > 0.6


def test_dirichlet_shares_have_the_mean_and_variance_of_the_law():
    """Of Dir(α, …, α) over K clients: mean 1/K, variance (1/K)(1 - 1/K) / (Kα + 1)."""
    from random import Random

    from luthier.federating.partition import _shares

    draw, k, alpha = Random(0), 4, 0.5
    found = [_shares(k, alpha, draw)[0] for _ in range(20_000)]
    mean = sum(found) / len(found)
    variance = sum((value - mean) ** 2 for value in found) / len(found)
    assert abs(mean - 0.25) < 0.01
    assert abs(variance - 0.25 * 0.75 / (k * alpha + 1)) < 0.003


def test_a_column_makes_a_client_of_each_value():
    parts = dealt(split="column", column="x")
    assert [{KINDS[i] for i in part} for part in parts] == [{f"class {i}"} for i in range(5)]
    with pytest.raises(lt.LuthierError, match="5 values"):
        dealt(split="column", column="x", clients=3)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"clients": 0}, "clients is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"fraction": 0.0}, "fraction is 0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"split": "diriclet"}, "dirichlet"),
        ({"split": "column"}, "name the column"),
        ({"column": "x"}, "looks at no column"),
        ({"ranks": "4,x"}, "whole numbers"),
        ({"ranks": "4,0"}, "whole numbers"),
        ({"split": "dirichlet", "concentration": 0.0}, "concentration is 0"),
    ],
)
def test_bad_settings_are_told(settings, text):
    with pytest.raises(lt.LuthierError, match=text):
        Federation(**settings)


def test_what_cannot_be_dealt_is_told():
    with pytest.raises(lt.LuthierError, match="2 rows do not do for 3 clients"):
        partition(Federation(clients=3), ["a", "b"], 0)
    with pytest.raises(lt.LuthierError, match="no class; name a column"):
        partition(Federation(clients=2, split="dirichlet"), [None] * 9, 0)
    with pytest.raises(lt.LuthierError, match="of one kind"):
        partition(Federation(clients=2, split="dirichlet"), ["a"] * 9, 0)
    with pytest.raises(lt.LuthierError, match="without rows"):
        partition(Federation(clients=20, split="dirichlet", concentration=1e-4), KINDS[:40], 0)
