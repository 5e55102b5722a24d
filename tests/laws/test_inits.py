"""The laws of initialisers, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.adapters.lower import affine_map, delta_of
from luthier.core.adapters.tuner import START, TunerLayer
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.sites.collect import collect
from support.calibrated import batches, build

INITS = names("inits")
WHERE = "q_proj, down_proj"


@cache
def served(name: str) -> dict[str, tuple[Form, dict]]:
    """By name, each form with a rank that it can start, and what was measured for it."""
    init, found = find("inits", name)(), {}
    assert isinstance(init, Init)
    for key in names("forms"):
        form = find("forms", key)()
        assert isinstance(form, Form)
        if "rank" not in form.to_dict() or "affine" not in form.kinds:
            continue
        form, model = form.with_rank(4), build(dtype=torch.float64)
        try:
            stats = collect(model, batches(6), lt.select(model, WHERE), init.statistics(form))
            lt.attach(model, form, WHERE, init=init, stats=stats)
        except lt.LuthierError:
            continue
        found[key] = form, stats
    return found


def started(name: str):
    """(form, model that starts so, statistics) of every form that is served."""
    for form, stats in served(name).values():
        init = find("inits", name)()
        yield form, lt.attach(build(dtype=torch.float64), form, WHERE, init=init, stats=stats), stats  # type: ignore[arg-type]


def subtract_start(name: str) -> bool:
    """Whether the effect of the start is taken off."""
    return find("inits", name).subtract_start  # type: ignore[attr-defined]


def moved(model):
    """The model with its parameters away from the start."""
    generator = torch.Generator().manual_seed(5)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize("name", INITS)
def test_it_states_its_equation_and_source_and_serves_a_form(name):
    init = find("inits", name)
    assert len(init.equation()) > 5 and init.paper and init.name() == name
    assert served(name)


@pytest.mark.parametrize("name", INITS)
def test_the_output_is_unchanged_unless_it_says_otherwise(name):
    ids = batches(1, seed=9)[0]
    before = build(dtype=torch.float64)(**ids).logits
    for _, model, _ in started(name):
        same = torch.allclose(model(**ids).logits, before, atol=1e-10)
        assert same == find("inits", name)().identity  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", INITS)
def test_factors_have_the_forms_shapes_and_differ_from_its_own_start(name):
    for form, model, _ in started(name):
        plain = lt.attach(build(dtype=torch.float64), form, WHERE)
        ours, theirs = tensors(model), tensors(plain)
        kept = {key: ours.pop(key) for key in list(ours) if key.endswith(START)}
        trained = [key for key in theirs if theirs[key].requires_grad]
        assert sorted(kept) == (sorted(key + START for key in trained) if subtract_start(name) else [])
        assert all(torch.equal(t, ours[key.removesuffix(START)]) and not t.requires_grad for key, t in kept.items())
        assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in theirs.items()}
        assert any(not torch.equal(ours[key], theirs[key]) for key in ours)
        assert all(t.isfinite().all() for t in ours.values())
        assert len({t.data_ptr() for t in (*ours.values(), *kept.values())}) == len(ours) + len(kept)


@pytest.mark.parametrize("name", INITS)
def test_every_rank_up_to_the_measured_one_works(name):
    ids = batches(1, seed=9)[0]
    for form, _, stats in started(name):
        for rank in (1, 2, 3, 4):
            model, init = build(dtype=torch.float64), find("inits", name)()
            ranks = {site.path: rank if site.layer else 0 for site in lt.select(model, WHERE)}
            lt.attach(model, form, WHERE, init=init, stats=stats, ranks=ranks)  # type: ignore[arg-type]
            assert model(**ids).logits.isfinite().all()


@pytest.mark.parametrize("name", INITS)
def test_the_start_follows_from_the_statistics_alone(name):
    for form, model, stats in started(name):
        torch.manual_seed(77)
        init = find("inits", name)()
        again = lt.attach(build(dtype=torch.float64), form, WHERE, init=init, stats=stats)  # type: ignore[arg-type]
        site = lt.select(again, WHERE)[0]
        chosen = init.factors(form, site, {**stats.get(site.path, {}), "weight": weight(again, site.path)})  # type: ignore[attr-defined]
        for key in chosen:
            name_ = f"default.{site.path}.{key}"
            assert torch.equal(tensors(again)[name_], tensors(model)[name_])


def weight(model, path: str) -> torch.Tensor:
    """The base's own weight."""
    return model.get_submodule(path).weight.detach()


@pytest.mark.parametrize("name", INITS)
def test_training_moves_it_and_lowers_the_loss(name):
    rows = batches(1)[0]
    for _, model, _ in started(name):
        held = {key: tensor.detach().clone() for key, tensor in lt.trainable(model).items()}
        optimizer = torch.optim.AdamW(lt.trainable(model).values(), lr=1e-2)
        losses = []
        for _ in range(5):
            loss = model(**rows).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        assert all(not torch.equal(tensor, held[key]) for key, tensor in lt.trainable(model).items())


@pytest.mark.parametrize("name", INITS)
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    ids = batches(1, seed=9)[0]
    for form, model, _ in started(name):
        logits = moved(model)(**ids).logits
        lt.save(model, tmp_path / form.name())
        again = lt.load(build(dtype=torch.float64), tmp_path / form.name())
        assert torch.equal(again(**ids).logits, logits)
        assert all(torch.equal(t, tensors(again)[key]) for key, t in tensors(model).items())


@pytest.mark.parametrize("name", INITS)
def test_merged_disabled_and_detached_the_base_is_what_it_was(name):
    ids, base = batches(1, seed=9)[0], build(dtype=torch.float64)
    before, state = base(**ids).logits, base.state_dict()
    for _, model, _ in started(name):
        logits = moved(model)(**ids).logits
        assert not torch.allclose(logits, before, atol=1e-3)
        with lt.disabled(model):
            assert torch.equal(model(**ids).logits, before)
        assert torch.allclose(lt.merge(model)(**ids).logits, logits, atol=1e-10)
        assert torch.equal(lt.unmerge(model)(**ids).logits, logits)
        lt.detach(model)
        assert torch.equal(model(**ids).logits, before)
        assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())


@pytest.mark.parametrize("name", INITS)
def test_exact_factors_of_the_change_are_exact(name):
    for _, model, _ in started(name):
        for site in lt.select(build(), WHERE):
            module = moved(model).get_submodule(site.path)
            tuners = [tuner for tuner in module.adapters.tuners() if isinstance(tuner, TunerLayer)]
            dense = affine_map(module, tuners)[0] - weight(model, site.path)
            assert torch.allclose(delta_of(module, tuners).dense(), dense, atol=1e-10)
