"""The laws of examinations, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch

import luthier as lt
from luthier.combining.parameter_refs import parameter_refs
from luthier.core.contracts.component import find, names
from luthier.core.contracts.examination import Change, Examination, Pair
from luthier.core.numerics.delta import Delta
from luthier.core.sites.scope import Scope
from luthier.examining.plot import plot
from support.architectures import ARCHITECTURES
from support.asked import with_texts

EXAMINATIONS = names("examinations")


def made(name: str) -> Examination:
    examination = find("examinations", name)()
    assert isinstance(examination, Examination)
    return examination


def batches(count: int = 3, rows: int = 4) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 97, (rows, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 6:] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)})
    return found


def against(model, size: float) -> Pair:
    """The model before and after a random change of relative norm `size` of every matrix; 0 is the model itself."""
    scope, generator = Scope(model), torch.Generator().manual_seed(2)
    changes = []
    for group in parameter_refs(model):
        if group[0].tensor.dim() == 2:
            noise = size * torch.randn(group[0].tensor.shape, generator=generator, dtype=torch.float64)
            delta = Delta.dense_of(noise * group[0].tensor.detach().std()) if size else Delta.zero(*noise.shape)
            changes.append(Change(group[0].place(scope, {}), partial(lambda d: d, delta)))
    other = ARCHITECTURES["llama"].build(dtype=torch.float64)
    with torch.no_grad():
        for change in changes:
            other.get_parameter(change.place.site.path).add_(change.delta().dense())
    data = {"texts": batches()}
    return with_texts(Pair(lambda: changes, lambda: nullcontext(model), lambda: nullcontext(other), data), model)


def routed(model, size: float) -> Pair:
    """The model with experts beside it; at 0 their gates tell no token apart."""
    torch.manual_seed(3)
    other = lt.attach(ARCHITECTURES["llama"].build(dtype=torch.float64), lt.LoRAMoE(experts=4, rank=2), "up_proj")
    for key, tensor in lt.trainable(other).items():
        tensor.data *= 8 * size if key.endswith("gate") else 1.0
    return Pair(lambda: [], lambda: nullcontext(model), lambda: nullcontext(other), {"texts": batches()})


SPECIAL = {"routing": routed}
"""Examinations of what a change of weights does not have."""


@pytest.fixture(scope="module")
def model():
    return ARCHITECTURES["llama"].build(dtype=torch.float64)


@pytest.fixture(scope="module")
def reports(model):
    """`reports(name, size)`: made once."""
    known = {}

    def report(name: str, size: float):
        if (name, size) not in known:
            known[name, size] = made(name).measure(SPECIAL.get(name, against)(model, size))
        return known[name, size]

    return report


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_it_states_its_equation_and_source(name):
    examination = made(name)
    assert len(examination.equation()) > 5 and examination.paper and examination.name() == name
    assert examination.from_dict(examination.to_dict()) == examination
    with pytest.raises(lt.LuthierError):
        examination.from_dict({"no such setting": 1})


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_a_model_against_itself_reports_nothing(name, reports):
    assert abs(reports(name, 0.0).effect) < 1e-12


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_the_null_has_the_same_numbers_at_the_same_places(name, reports):
    found = reports(name, 0.5)
    assert found.places.keys() == found.null.keys() == found.layers.keys() and found.places
    columns = {tuple(numbers) for each in (found.places, found.null) for numbers in each.values()}
    assert len(columns) == 1 and found.column in next(iter(columns))
    assert found.summary.keys() == found.null_summary.keys() and found.verdict and found.baseline
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_it_repeats_itself_and_leaves_the_model_alone(name, model, reports):
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first = reports(name, 0.5)
    torch.manual_seed(7)
    assert made(name).measure(SPECIAL.get(name, against)(model, 0.5)) == first
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_it_is_drawn(name, reports, tmp_path, drawn):
    plot({"examination": name, "target": "run", **reports(name, 0.5).to_dict()}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
