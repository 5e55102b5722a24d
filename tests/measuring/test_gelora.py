"""GeLoRA: the equation on states of known dimension, and what is said when the data cannot tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier.core.contracts.ranks import Budget
from support.architectures import ARCHITECTURES

SETTINGS = dict(ARCHITECTURES["llama"].settings, num_hidden_layers=3)


def build():
    return replace(ARCHITECTURES["llama"], settings=SETTINGS).build()


def cloud(dimension: int, seed: int, rows: int = 1500, width: int = 32) -> torch.Tensor:
    """A flat cloud of that dimension, rotated."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q[:dimension]
    return torch.rand(rows, dimension, generator=generator) @ basis


def stats(*dimensions: int) -> dict:
    return {f"model.layers.{i}": {"states": cloud(d, i)} for i, d in enumerate(dimensions)}


def test_ranks_follow_the_rise_of_the_dimension():
    sites = lt.select(build(), "all-linear")
    found = lt.GeLoRA().allocate(sites, stats(2, 5, 3, 6), Budget(lt.LoRA()))
    by_layer = [{found[site.path] for site in sites if site.layer == layer} for layer in range(3)]
    assert by_layer == [{4}, {1}, {4}]


@pytest.mark.parametrize("form", [lt.LoRA(), lt.WeGeFT(), lt.LoReFT(positions="f2+l2")])
def test_it_serves_every_form_with_a_rank_and_is_saved(form, tmp_path):
    model, ids = build(), ARCHITECTURES["llama"].inputs(2, 8)
    sites = lt.select(model, form.where)
    ranks = lt.GeLoRA().allocate(sites, stats(2, 5, 3, 6), Budget(form))
    lt.attach(model, form, ranks=ranks)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1
    lt.save(model, tmp_path / "adapter")
    again = lt.load(build(), tmp_path / "adapter")
    assert torch.allclose(model(**ids).logits, again(**ids).logits, atol=1e-6)
    assert {tuner.form.rank for part in vars(again)["_luthier"].components for tuner in part.tuners.values()} == {4, 1}


def test_a_budget_scales_the_rises_and_is_kept():
    sites, found = lt.select(build(), "all-linear"), stats(2, 4, 3, 7)
    for parameters in (8_000, 20_000, 60_000):
        budget = Budget(lt.LoRA(), parameters)
        ranks = lt.GeLoRA().allocate(sites, found, budget)
        first, second, third = (ranks[f"model.layers.{i}.mlp.up_proj"] for i in range(3))
        assert second == 1 and third >= first >= 1
        assert budget.spent(sites, ranks) <= parameters
    with pytest.raises(lt.LuthierError, match="too small"):
        lt.GeLoRA().allocate(sites, found, Budget(lt.LoRA(), 100))


def test_shared_parameters_get_the_largest_rank():
    sites = lt.select(build(), "q_proj, v_proj")
    form = lt.WeGeFT(share="type")
    ranks = lt.GeLoRA().allocate(sites, stats(2, 5, 3, 6), Budget(form))
    assert set(ranks.values()) == {4}


def test_a_site_outside_the_blocks_is_refused():
    with pytest.raises(lt.LuthierError, match="lies in no block"):
        lt.GeLoRA().allocate(lt.select(build(), "head"), stats(2, 5, 3, 6), Budget(lt.LoRA()))


def test_the_evidence_holds_intervals_a_null_and_a_verdict():
    sites = lt.select(build(), "all-linear")
    found = lt.GeLoRA().evidence(sites, stats(2, 5, 3, 6))
    assert list(found["boundaries"]) == [f"model.layers.{i}" for i in range(4)]
    first = found["boundaries"]["model.layers.0"]
    assert first["low"] < first["value"] < first["high"] and first["low"] < 2 < first["high"]
    block = found["blocks"]["model.layers.0"]
    assert block["low"] <= block["rank"] == 4 <= block["high"] and block["noise"] == 1
    assert "2 of 3 blocks raise the dimension" in found["verdict"]


def test_states_that_never_rise_say_that_nothing_is_told():
    same = {f"model.layers.{i}": {"states": cloud(5, 0)} for i in range(4)}
    found = lt.GeLoRA().evidence(lt.select(build(), "all-linear"), same)
    assert {block["rank"] for block in found["blocks"].values()} == {1}
    assert "nothing tells ranks from 1" in found["verdict"]


def test_a_small_sample_is_said_to_be_small():
    few = {f"model.layers.{i}": {"states": cloud(12, i, rows=24)} for i in range(4)}
    assert "too few to tell" in lt.GeLoRA().evidence(lt.select(build(), "all-linear"), few)["verdict"]


def test_a_cloud_of_few_distinct_points_has_dimension_0():
    clouds = stats(2, 5, 3, 6) | {"model.layers.0": {"states": torch.ones(1500, 32)}}
    sites = lt.select(build(), "q_proj")
    assert lt.GeLoRA().allocate(sites, clouds, Budget(lt.LoRA()))["model.layers.0.self_attn.q_proj"] == 6
    with pytest.raises(lt.LuthierError, match="10 are the fewest"):
        lt.GeLoRA().allocate(sites, {p: {"states": torch.rand(4, 8)} for p in clouds}, Budget(lt.LoRA()))
