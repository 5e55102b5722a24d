"""A rank for each site: attached, counted, saved, merged and exported as such."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.contracts.ranks import Budget, parameters_of
from support.architectures import ARCHITECTURES
from support.forged import reseal

MODEL = ARCHITECTURES["llama"]


def build():
    return MODEL.build(dtype=torch.float64)


def some_ranks(model, where: str) -> dict[str, int]:
    return {site.path: index % 4 for index, site in enumerate(lt.select(model, where))}


def fitted(form, where: str = "q_proj, down_proj"):
    model = build()
    lt.attach(model, form, where, ranks=some_ranks(model, where))
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize("form", [lt.LoRA(rank=8, alpha=16.0), lt.WeGeFT(rank=8), lt.DoRA(rank=8)])
def test_each_site_has_its_rank_and_rank_0_is_no_site(form):
    model = fitted(form)
    ranks = some_ranks(model, "q_proj, down_proj")
    held = tensors(model)
    factor = {"lora": "A", "dora": "A", "wegeft": "psi"}[form.name()]
    for path, rank in ranks.items():
        found = held.get(f"default.{path}.{factor}")
        assert (found is None) == (rank == 0)
        assert found is None or found.shape[0] == rank
    assert sum(row["sites"] for row in lt.describe(model)) == sum(rank > 0 for rank in ranks.values())


def test_rslora_s_own_rule_holds_at_every_rank():
    form = lt.LoRA(rank=8, alpha=16.0, scaling="rslora")
    assert form.with_rank(32) == lt.LoRA(rank=32, alpha=16.0, scaling="rslora")
    assert form.with_rank(32).scale == pytest.approx(16 / 32**0.5) and form.with_rank(8) == form
    assert lt.DoRA(rank=4, alpha=8.0, scaling="rslora").with_rank(16).scale == 2.0


def test_alpha_over_rank_stays():
    assert lt.LoRA(rank=8, alpha=16.0).with_rank(3) == lt.LoRA(rank=3, alpha=6.0)
    assert lt.LoReFT(rank=8).with_rank(3) == lt.LoReFT(rank=3)
    with pytest.raises(lt.LuthierError, match="ia3 has no rank"):
        lt.IA3().with_rank(3)


def test_saved_loaded_merged_and_exported(tmp_path):
    model, ids = fitted(lt.LoRA(rank=4)), MODEL.inputs(2, 6)
    expected = model(**ids).logits
    lt.save(model, tmp_path / "adapter")
    again = lt.load(build(), tmp_path / "adapter")
    assert torch.allclose(again(**ids).logits, expected, atol=1e-6)  # stored as float64, the base's own width
    assert torch.allclose(lt.merge(again)(**ids).logits, expected, atol=1e-6)
    spec = json.loads((tmp_path / "adapter/adapter.json").read_text())
    assert spec["parts"][0]["ranks"] == some_ranks(model, "q_proj, down_proj")
    lt.export(tmp_path / "adapter", tmp_path / "peft", to="peft", base=build())
    from peft import PeftModel

    assert torch.allclose(PeftModel.from_pretrained(build(), tmp_path / "peft")(**ids).logits, expected, atol=1e-5)


def test_a_spec_whose_ranks_do_not_fit_is_refused(tmp_path):
    lt.save(fitted(lt.LoRA(rank=4)), tmp_path / "adapter")
    file = tmp_path / "adapter/adapter.json"
    spec = json.loads(file.read_text())
    path = next(p for p, r in spec["parts"][0]["ranks"].items() if r)
    for wrong in (spec["parts"][0]["ranks"][path] + 1, 0, -1, "2", 10**9):
        changed = json.loads(file.read_text())
        changed["parts"][0]["ranks"][path] = wrong
        file.write_text(json.dumps(changed))
        reseal(tmp_path / "adapter")
        with pytest.raises(lt.LuthierError):
            lt.load(build(), tmp_path / "adapter")
        file.write_text(json.dumps(spec))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"nowhere": 1}, "'nowhere' is none of the sites"),
        ({"model.layers.0.self_attn.q_proj": None}, "'model.layers.0.self_attn.q_proj' has none"),
        ({"model.layers.0.self_attn.q_proj": -1}, "at least 0"),
        ({"model.layers.0.self_attn.q_proj": 1.5}, "at least 0"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(change, told):
    model = build()
    ranks = {site.path: 2 for site in lt.select(model, "q_proj")} | change
    ranks = {path: rank for path, rank in ranks.items() if rank is not None}
    with pytest.raises(lt.LuthierError, match=told):
        lt.attach(model, lt.LoRA(), "q_proj", ranks=ranks)
    assert type(model).__name__ == "LlamaForCausalLM" and "adapters" not in str(model)


def test_sharing_needs_one_rank():
    model = build()
    ranks = {site.path: 1 + site.layer for site in lt.select(model, "q_proj")}
    with pytest.raises(lt.LuthierError, match="ranks differ"):
        lt.attach(model, lt.WeGeFT(share="type"), "q_proj", ranks=ranks)
    with pytest.raises(lt.LuthierError, match="every rank is 0"):
        lt.attach(model, lt.LoRA(), "q_proj", ranks=dict.fromkeys(ranks, 0))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.1%", 1_000),
        ("500k", 500_000),
        ("2M", 2_000_000),
        ("1.5b", 1_500_000_000),
        ("30_000", 30_000),
        ("8MB", 2_000_000),
        ("8 MiB", 2_097_152),
        ("100%", 1_000_000),
    ],
)
def test_a_budget_in_any_unit(text, numbers):
    assert parameters_of(text, 1_000_000) == numbers


@pytest.mark.parametrize("text", ["", "many", "-3k", "3 apples", "0.1 %%", "0", "1e400", "%"])
def test_a_budget_that_is_none(text):
    with pytest.raises(lt.LuthierError, match="budget"):
        parameters_of(text, 1_000_000)


def test_the_cost_of_ranks_is_what_is_then_trained():
    for form in (lt.LoRA(), lt.DoRA(), lt.WeGeFT(share="type"), lt.LoReFT()):
        model = build()
        sites = lt.select(model, form.where)
        ranks = {site.path: 3 for site in sites}
        spent = Budget(form).spent(sites, ranks)
        lt.attach(model, form, ranks=ranks)
        assert lt.trainable(model, count=True) == spent


def test_uniform_is_the_largest_rank_within_the_budget():
    model = build()
    sites = lt.select(model, "all-linear")
    for parameters in (5_000, 20_000, 10**9):
        budget = Budget(lt.LoRA(), parameters)
        found = lt.Uniform().allocate(sites, {}, budget)
        rank = set(found.values()).pop()
        assert budget.spent(sites, found) <= parameters
        higher = dict.fromkeys(found, rank + 1)
        assert budget.spent(sites, higher) > parameters or rank == min(min(s.d_in, s.d_out) for s in sites)
    with pytest.raises(lt.LuthierError, match=r"too small: lora of rank 1 at \d+ sites takes"):
        lt.Uniform().allocate(sites, {}, Budget(lt.LoRA(), 10))
