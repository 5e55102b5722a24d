"""The laws of allocations of ranks, over the registry: a new file is tested the day it is dropped in."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import luthier as lt
from luthier.core.adapters.attach import state_of
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.ranks import Budget, Ranks
from luthier.core.sites.collect import collect
from support.calibrated import batches, build

RANKS = names("ranks")
FORMS = {"lora": lt.LoRA(rank=4), "wegeft": lt.WeGeFT(rank=4), "loreft": lt.LoReFT(rank=4)}


@cache
def served(name: str) -> dict[str, tuple[Ranks, dict]]:
    """By form, the allocation and what was measured for it; forms that it refuses are left out."""
    found = {}
    for key, form in FORMS.items():
        ranks, model = find("ranks", name)(), build()
        assert isinstance(ranks, Ranks)
        sites = lt.select(model, form.where)
        try:
            stats = collect(model, batches(10), sites, ranks.statistics(form))
            ranks.allocate(sites, stats, Budget(form))
        except lt.LuthierError:
            continue
        found[key] = ranks, stats
    return found


def cases(name: str):
    """(form, sites of a fresh model, the model, allocation, statistics) of every form that is served."""
    for key, (ranks, stats) in served(name).items():
        model = build()
        yield FORMS[key], lt.select(model, FORMS[key].where), model, ranks, stats


def half_and_more(form: Form, sites) -> list[int]:
    """Budgets around what the form's own rank costs."""
    full = Budget(form).spent(sites, {site.path: 4 for site in sites})
    return [int(share * full) for share in (0.3, 0.5, 0.77, 1.0)]


@pytest.mark.parametrize("name", RANKS)
def test_it_states_its_equation_and_source_and_serves_a_form(name):
    ranks = find("ranks", name)
    assert len(ranks.equation()) > 5 and ranks.paper and ranks.name() == name
    assert served(name)


@pytest.mark.parametrize("name", RANKS)
def test_every_site_gets_one_rank_that_fits_it(name):
    for form, sites, _, ranks, stats in cases(name):
        found = ranks.allocate(sites, stats, Budget(form))
        assert list(found) == [site.path for site in sites]
        assert all(type(rank) is int and rank >= ranks.least for rank in found.values())
        assert all(found[site.path] <= max(form.to_dict()["rank"], min(site.d_in, site.d_out)) for site in sites)
        assert found == ranks.allocate(sites, stats, Budget(form))


@pytest.mark.parametrize("name", RANKS)
def test_a_budget_is_kept_and_more_buys_no_less(name):
    for form, sites, _, ranks, stats in cases(name):
        spent = []
        for parameters in half_and_more(form, sites):
            budget = Budget(form, parameters)
            found = ranks.allocate(sites, stats, budget)
            assert list(found) == [site.path for site in sites] and min(found.values()) >= ranks.least
            spent.append(budget.spent(sites, found))
            assert 0 < spent[-1] <= parameters
        assert spent == sorted(spent)


@pytest.mark.parametrize("name", RANKS)
def test_a_budget_that_is_too_small_is_refused(name):
    for form, sites, _, ranks, stats in cases(name):
        with pytest.raises(lt.LuthierError, match="too small"):
            ranks.allocate(sites, stats, Budget(form, 3))


@pytest.mark.parametrize("name", RANKS)
def test_ranks_are_attached_counted_saved_and_loaded(name, tmp_path):
    for form, sites, model, ranks, stats in cases(name):
        budget = Budget(form, half_and_more(form, sites)[1])
        found = ranks.allocate(sites, stats, budget)
        lt.attach(model, form, ranks=found)
        assert lt.trainable(model, count=True) == budget.spent(sites, found)
        for parameter in lt.trainable(model).values():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        lt.save(model, tmp_path / form.name())
        again, ids = lt.load(build(), tmp_path / form.name()), batches(1)[0]
        assert state_of(again).components[0].ranks == found
        assert torch.equal(again(**ids).logits, model(**ids).logits)


@pytest.mark.parametrize("name", RANKS)
def test_sites_that_were_not_measured_are_refused(name):
    for form, sites, _, ranks, _ in cases(name):
        if ranks.statistics(form):
            with pytest.raises(lt.LuthierError):
                ranks.allocate(sites, {}, Budget(form))
