"""The laws of combinations, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

import itertools

import pytest
import torch

import luthier as lt
from luthier.core.contracts.combination import Combination, Place
from luthier.core.contracts.component import find, names
from luthier.core.contracts.site import Site
from luthier.core.numerics.delta import Delta

COMBINATIONS = names("combinations")
SHAPES = [(6, 8), (5,), (1, 3), (2, 4, 3)]


def made(name: str, **settings) -> Combination:
    method = find("combinations", name)(**settings)
    assert isinstance(method, Combination)
    return method


def place(shape: tuple[int, ...], layer: int | None = 1, totals=None) -> Place:
    site = Site(f"blocks.{layer}.x.weight", "param", shape[-1], (1, *shape)[-2], layer)
    return Place(site, shape, 3, lambda: torch.zeros(shape, dtype=torch.float64), False, totals or {})


def deltas(shape: tuple[int, ...], count: int, dtype=torch.float64, seed: int = 0) -> list[Delta]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Delta.dense_of(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for _ in range(count)
    ]


def merged(method: Combination, given: list[Delta], weights: list[float], layer: int | None = 1) -> Delta:
    at = place(given[0].shape, layer)
    totals = method.survey(given, weights, at)
    return method.merge(given, weights, place(given[0].shape, layer, totals))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_it_states_its_equation_and_source(name):
    method = find("combinations", name)
    assert len(method.equation()) > 5 and method.paper and method.name() == name
    assert set(method.neutral) <= set(method.settings())  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_one_input_is_a_fixed_point_at_neutral_settings(name, shape):
    method = made(name, **dict(find("combinations", name).neutral))  # type: ignore[attr-defined]
    for layer in (0, 2, None):
        (delta,) = deltas(shape, 1)
        assert torch.allclose(merged(method, [delta], [1.0], layer).dense(), delta.dense(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_neutral_settings_keep_the_structure_of_one_input(name):
    method = made(name, **dict(find("combinations", name).neutral))  # type: ignore[attr-defined]
    low = Delta.low_rank(torch.randn(9, 2).double(), torch.randn(2, 7).double())
    result = merged(method, [low], [1.0])
    assert result.shape == low.shape and torch.allclose(result.dense(), low.dense(), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_order_of_inputs_does_not_matter_where_stated(name, shape):
    method, weights = made(name), [1.0, 0.5, 0.25]
    given = deltas(shape, 3)
    wanted = merged(method, given, weights).dense()
    results = []
    for order in itertools.permutations(range(3)):
        shuffled = merged(method, [given[i] for i in order], [weights[i] for i in order]).dense()
        results.append(torch.allclose(shuffled, wanted, rtol=1e-12, atol=1e-14))
    assert all(results) or not method.commutes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_shape_and_dtype_stay_and_inputs_are_left_alone(name, shape, dtype):
    given = deltas(shape, 2, dtype)
    before = [d.dense().clone() for d in given]
    result = merged(made(name), given, [0.5, 0.5])
    assert result.shape == shape and result.dense().shape == shape and result.dense().dtype == dtype
    assert result.dense().isfinite().all()
    assert all(torch.equal(d.dense(), b) for d, b in zip(given, before, strict=True))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_it_is_the_same_twice(name):
    given = deltas((6, 8), 2)
    torch.manual_seed(1)
    first = merged(made(name), given, [1.0, 1.0]).dense()
    torch.manual_seed(2)
    assert torch.equal(merged(made(name), given, [1.0, 1.0]).dense(), first)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_an_input_that_leaves_a_tensor_alone_may_be_of_no_part(name):
    given = [Delta.zero(6, 8), deltas((6, 8), 1)[0], Delta.zero(6, 8)]
    zeros = Delta.dense_of(torch.zeros(6, 8, dtype=torch.float64))
    written = [d if not d.is_zero else zeros for d in given]
    method, weights = made(name), [1.0, 1.0, 1.0]
    assert torch.allclose(merged(method, given, weights).dense().double(), merged(method, written, weights).dense())
    nothing = merged(method, [Delta.zero(6, 8)] * 2, [1.0, 1.0])
    assert nothing.shape == (6, 8) and not nothing.dense().any()


@pytest.mark.parametrize("name", COMBINATIONS)
def test_it_takes_deltas_of_the_tensors_own_shape(name):
    method = made(name)
    assert method.fits((6, 8), place((6, 8))) and not method.fits((6, 7), place((6, 8)))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_settings_come_back_from_json_and_bad_ones_are_refused(name):
    method = find("combinations", name)
    assert method.from_dict(method().to_dict()) == method()
    with pytest.raises(lt.LuthierError):
        method.from_dict({"no such setting": 1})
