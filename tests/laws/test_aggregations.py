"""The laws of aggregations, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

import itertools

import pytest
import torch

import luthier as lt
from luthier.core.contracts.aggregation import Aggregation, factors, shares_of
from luthier.core.contracts.component import find, names
from luthier.core.numerics.delta import Delta

AGGREGATIONS = names("aggregations")
MIXED = (2, 4, 3)


def made(name: str) -> Aggregation:
    method = find("aggregations", name)()
    assert isinstance(method, Aggregation)
    return method


def clients(ranks: tuple[int, ...], dtype=torch.float64, seed: int = 0) -> list[Delta]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return [Delta.low_rank(draw(9, rank), draw(rank, 7)) for rank in ranks]


def ranks_for(method: Aggregation) -> tuple[int, ...]:
    return MIXED if method.mixed else (3, 3, 3)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_it_states_its_equation_and_source(name):
    method = find("aggregations", name)
    assert len(method.equation()) > 5 and method.paper and method.name() == name


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_identical_clients_give_that_clients_change(name):
    (delta,) = clients((3,))
    for shares in ((1.0,), (0.5, 0.5), (0.7, 0.2, 0.1)):
        found = made(name).aggregate([delta] * len(shares), shares)
        assert torch.allclose(found.dense(), delta.dense(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_the_order_of_clients_does_not_matter(name):
    method, shares = made(name), (0.5, 0.3, 0.2)
    given = clients(ranks_for(method))
    wanted = method.aggregate(given, shares).dense()
    for order in itertools.permutations(range(3)):
        found = method.aggregate([given[i] for i in order], [shares[i] for i in order]).dense()
        assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_client_that_counts_for_nothing_changes_nothing(name):
    method = made(name)
    given = clients((3, 3, 3))
    found, wanted = method.aggregate(given, (0.6, 0.4, 0.0)), method.aggregate(given[:2], (0.6, 0.4))
    assert torch.allclose(found.dense(), wanted.dense(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_twice_the_change_of_all_is_twice_the_result(name):
    """The scale s_k lies in B, so the result must follow it."""
    method, shares = made(name), (0.5, 0.3, 0.2)
    given = clients(ranks_for(method))
    twice = method.aggregate([2.0 * delta for delta in given], shares).dense()
    assert torch.allclose(twice, 2 * method.aggregate(given, shares).dense(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_the_result_is_of_low_rank_and_inputs_are_left_alone(name, dtype):
    method = made(name)
    given = clients(ranks_for(method), dtype)
    before = [(b.clone(), a.clone()) for b, a in map(factors, given)]
    found = method.aggregate(given, (0.5, 0.3, 0.2))
    assert found.rank is not None and found.shape == (9, 7)
    assert found.dense().dtype == dtype and bool(found.dense().isfinite().all())
    for delta, (b, a) in zip(given, before, strict=True):
        assert all(map(torch.equal, factors(delta), (b, a)))


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_ranks_are_mixed_or_refused(name):
    method, given = made(name), clients(MIXED)
    if method.mixed:
        method.check_ranks(MIXED)
        return
    with pytest.raises(lt.LuthierError, match="ranks are 2, 3, 4"):
        method.check_ranks(MIXED)
    with pytest.raises(lt.LuthierError, match="ranks are 2, 3, 4"):
        method.aggregate(given, (0.5, 0.3, 0.2))


@pytest.mark.parametrize("name", [name for name in AGGREGATIONS if not made(name).merges])
def test_clients_go_on_from_the_result(name):
    """At the largest rank from all of it; at a smaller one from as many directions."""
    method = made(name)
    ranks = ranks_for(method)
    found = method.aggregate(clients(ranks), (0.5, 0.3, 0.2))
    assert found.rank == max(ranks)
    assert torch.allclose(method.start(found, max(ranks)).dense(), found.dense())
    for rank in ranks:
        b, a = factors(method.start(found, rank))
        assert b.shape == (9, rank) and a.shape == (rank, 7)
    assert torch.equal(method.start(found, 20).dense(), found.dense())  # the client has the rest afresh


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_settings_come_back_from_json_and_bad_ones_are_refused(name):
    method = find("aggregations", name)
    assert method.from_dict(method().to_dict()) == method()
    with pytest.raises(lt.LuthierError):
        method.from_dict({"no such setting": 1})


def test_shares_sum_to_one():
    shares = shares_of([3, 1, 7, 11, 1])
    assert abs(sum(shares) - 1) < 1e-15 and shares[2] == 7 / 23
    with pytest.raises(lt.LuthierError, match="needs a row"):
        shares_of([3, 0])
