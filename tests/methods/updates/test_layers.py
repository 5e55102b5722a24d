"""Updates that go by layers: LISA, HFT, freezing, decay of the rate, LoRA+'s two rates."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import transformers

import luthier as lt
from luthier.core.adapters.control import tensors
from luthier.core.adapters.optimiser import optimiser
from luthier.core.adapters.training_plan import training_plan
from luthier.methods.updates.freeze import Freeze
from luthier.methods.updates.hft import HFT
from luthier.methods.updates.layer_decay import LayerDecay
from luthier.methods.updates.lisa import LISA
from luthier.methods.updates.lora_plus import LoRAPlus
from support.architectures import ARCHITECTURES
from support.common import copies, full, llama, moments, run


def size(places) -> int:
    return sum(p.numel() for place in places for p in place.params.values())


def test_levels_go_from_the_embeddings_to_the_head():
    levels = {place.site.path: place.level for place in training_plan(full(3), 1).groups}
    assert levels["model.embed_tokens.weight"] == 0 and levels["model.layers.0.mlp.up_proj.weight"] == 1
    assert levels["model.layers.2.input_layernorm.weight"] == 3
    assert levels["model.norm.weight"] == levels["lm_head.weight"] == 4


@pytest.mark.parametrize(("name", "ahead", "behind"), [
    ("bert", ["bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.bias"], ["classifier.weight"]),
    ("bart", ["model.shared.weight", "model.decoder.embed_positions.weight"], []),
    ("gpt2", ["transformer.wte.weight", "transformer.wpe.weight"], ["transformer.ln_f.weight"]),
    ("vit", ["vit.embeddings.cls_token"], ["classifier.weight"]),
])  # fmt: skip
def test_levels_of_other_architectures(name, ahead, behind):
    from support.architectures import ARCHITECTURES

    model = lt.attach(ARCHITECTURES[name].build(), lt.Full(), check=False)
    plan = training_plan(model, 1)
    levels = {place.site.path: place.level for place in plan.groups}
    assert [levels[path] for path in ahead] == [0] * len(ahead)
    assert [levels[path] for path in behind] == [plan.depth + 1] * len(behind)


def test_lisa_s_visits_are_uniform():
    """χ² with 9 degrees of freedom over 600 draws of 2 out of 10 blocks: above 27.9 once in a thousand seeds."""
    plan, update = training_plan(full(10), 1), LISA(gamma=2, interval=5)
    draws = [{p.level for p in update.active(plan, 5 * k)} - {0, 11} for k in range(600)]
    assert {len(draw) for draw in draws} == {2}
    assert all(draws[k] == {p.level for p in update.active(plan, 5 * k + 4)} - {0, 11} for k in range(20))
    visits = Counter(level for draw in draws for level in draw)
    expected = 600 * 2 / 10
    # drawn without replacement, a block's visits vary by 8/9 of what the multinomial's would
    assert sum((visits[level] - expected) ** 2 / expected for level in range(1, 11)) / (8 / 9) < 27.9
    assert len({tuple(sorted(draw)) for draw in draws}) == 45


def test_lisa_holds_the_moments_of_gamma_blocks():
    model = full(6)
    update = LISA(gamma=2, interval=1)
    optimizer, plan = optimiser(model, update, lr=1e-3, steps=13), training_plan(model, 13)
    block = size(p for p in plan.groups if p.level == 1)
    outside = size(p for p in plan.groups if p.level in (0, 7))
    before, visited = copies(model), set()
    for step in range(12):
        active = {p.level for p in update.active(plan, step)}
        assert moments(optimizer) <= 2 * (outside + 2 * block)
        run(model, optimizer, 1, first=step)
        moved = {
            p.level for p in plan.groups for key in p.params if not tensors(model)[p.key(key)].equal(before[p.key(key)])
        }
        visited |= active
        assert moved == visited
        after = {p.level for p in update.active(plan, step + 1)}
        assert moments(optimizer) == 2 * (outside + block * len((active & after) - {0, 7}))
    assert visited == set(range(8))


def test_a_block_that_returns_starts_with_fresh_moments():
    model = full(3)
    update = LISA(gamma=1, interval=1)
    plan = training_plan(model, 30)
    levels = [max({p.level for p in update.active(plan, k)} - {0, 4}) for k in range(30)]
    again = next(k for k in range(2, 30) if levels[k] != levels[k - 1] and levels[k] in levels[:k])
    optimizer = optimiser(model, update, lr=1e-3, steps=30)
    run(model, optimizer, again)
    key = f"model.layers.{levels[again] - 1}.mlp.up_proj.weight"
    parameter = tensors(model)[f"default.{key}.theta"]
    assert parameter.requires_grad and parameter not in optimizer.state


def test_hft_trains_half_of_every_category():
    plan = training_plan(full(24), 1)
    inner = [p for p in plan.groups if 1 <= p.level <= 24]
    active = []
    for seed in range(10):
        active = HFT(outside=False).active(replace(plan, seed=seed), 0)
        assert size(active) / size(inner) == pytest.approx(0.5, abs=0.02)
    for level in range(1, 25):
        names = [p.site.path for p in active if p.level == level]
        count = lambda *ends: sum(any(f".{end}." in name for end in ends) for name in names)  # noqa: E731, B023
        assert count("q_proj", "k_proj", "v_proj", "o_proj") == 2
        assert count("input_layernorm", "post_attention_layernorm") == 1
        assert count("gate_proj", "up_proj", "down_proj") in (1, 2)
    ffn = [sum(f".{level}.mlp." in p.site.path for p in active) for level in range(24)]
    assert all(a + b == 3 for a, b in pairwise(ffn))


def test_hft_s_fraction_holds_over_the_whole_model_of_usual_shape():
    """Embeddings and head are small beside the blocks; with them, the fraction stays within .02 of a half."""
    plan = training_plan(full(24), 1)
    assert size(HFT().active(plan, 0)) / size(plan.groups) == pytest.approx(0.5, abs=0.02 + 0.5 * outer(plan))


def outer(plan) -> float:
    return size(p for p in plan.groups if p.level in (0, plan.depth + 1)) / size(plan.groups)


def test_hft_draws_again_for_a_stage_and_leaves_the_rest_alone():
    model = full(6)
    plan = training_plan(model, 8)
    once, staged = HFT(), HFT(interval=4)
    names = lambda update, step: {p.name for p in update.active(plan, step)}  # noqa: E731
    assert names(once, 0) == names(once, 7) and not once.changes
    assert names(staged, 0) == names(staged, 3) != names(staged, 4) and staged.changes
    before = copies(model)
    run(model, optimiser(model, once, lr=1e-2, steps=8), 3)
    resting = {p.name for p in plan.groups} - names(once, 0)
    for place in plan.groups:
        for key in place.params:
            assert tensors(model)[place.key(key)].equal(before[place.key(key)]) == (place.name in resting)


def test_a_bias_goes_with_its_matrix():
    model = lt.attach(llama(4, "qwen2"), lt.Full(), "params(*.layers.*)")
    plan = training_plan(model, 1)
    active = {p.site.path for p in HFT().active(plan, 0)}
    biases = [p.site.path for p in plan.groups if p.site.path.endswith("q_proj.bias")]
    assert biases and all((path in active) == (path.replace("bias", "weight") in active) for path in biases)


def test_freeze_keeps_the_bottom_and_the_backward_pass_short():
    model = full(4)
    before = copies(model)
    run(model, optimiser(model, Freeze(bottom=2), lr=1e-2, steps=2), 2)
    for place in training_plan(model, 1).groups:
        for key in place.params:
            assert tensors(model)[place.key(key)].equal(before[place.key(key)]) == (place.level <= 2)
    hidden = model.model.layers[1](torch.zeros(1, 3, 32, dtype=torch.float64), position_embeddings=rotary(model))
    assert not (hidden[0] if isinstance(hidden, tuple) else hidden).requires_grad
    with pytest.raises(lt.LuthierError, match="end with block 3"):
        optimiser(model, Freeze(bottom=4), lr=1e-2, steps=1)


def rotary(model):
    return model.model.rotary_emb(torch.zeros(1, 3, 32, dtype=torch.float64), torch.arange(3)[None])


def rates(optimizer, model) -> dict[str, float]:
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {key: of[id(p)] for key, p in lt.trainable(model).items()}


def test_layer_decay_s_rates_are_exact():
    model = full(4)
    found = rates(optimiser(model, LayerDecay(decay=0.9), lr=1e-3, steps=1), model)
    for key, rate in found.items():
        level = int(key.split("layers.")[1].split(".")[0]) + 1 if "layers." in key else 0 if "embed" in key else 4
        assert rate == 1e-3 * 0.9 ** (4 - level)
    assert len(set(found.values())) == 5


def test_layer_decay_may_start_the_top_anew():
    model = full(4)
    before = copies(model)
    optimiser(model, LayerDecay(reinit=2), lr=1e-3, steps=1, seed=1)
    for place in training_plan(model, 1).groups:
        for key, p in place.params.items():
            if place.level in (3, 4):
                fresh = p.std().item() if p.dim() > 1 else (p - 1).abs().max().item()
                assert fresh == pytest.approx(0.02, rel=0.2) if p.dim() > 1 else fresh == 0
            else:
                assert p.equal(before[place.key(key)])
    with pytest.raises(lt.LuthierError, match="use full"):
        optimiser(lt.attach(llama(), lt.LoRA()), LayerDecay(reinit=1), lr=1e-3, steps=1)


@pytest.mark.parametrize("name", ["gemma3", "qwen2", "gpt2", "t5", "mixtral"])
def test_what_starts_anew_starts_as_the_model_s_own_does(name):
    """Gemma's norms compute 1 + w: they start at 0, where Llama's start at 1."""
    known = ARCHITECTURES[name]
    fresh = getattr(transformers, known.model)(getattr(transformers, known.config)(**known.settings))
    model = known.build()
    for parameter in model.parameters():
        parameter.data.uniform_(0.3, 0.6)
    before = {key: p.clone() for key, p in model.state_dict().items()}
    lt.attach(model, lt.Full(), "params(*.layers.*, *.h.*, *.block.*)")
    plan = training_plan(model, 1)
    optimiser(model, LayerDecay(reinit=1), lr=1e-3, steps=1)
    top = [place for place in plan.groups if place.level == plan.depth]
    for place in top:
        if place.params["theta"].dim() < 2:
            assert place.params["theta"].equal(fresh.get_parameter(place.site.path))
    assert any(place.params["theta"].dim() < 2 for place in top)
    now = {key: p for key, p in model.state_dict().items() if key in before}
    assert all(p.equal(before[key]) for key, p in now.items())


def test_what_the_model_leaves_alone_cannot_start_anew(monkeypatch):
    model = full(2)
    monkeypatch.setattr(type(model.model), "_init_weights", lambda self, module: None, raising=False)
    with pytest.raises(lt.LuthierError, match=r"cannot tell how params.*norm.weight. starts: .* leaves it"):
        optimiser(model, LayerDecay(reinit=1), lr=1e-3, steps=1)


@pytest.mark.parametrize(
    ("form", "readers"), [(lt.LoRA(), ("A",)), (lt.WeGeFT(), ("psi",)), (lt.Hydra(), ("D_p", "D_s"))]
)
def test_lora_plus_has_two_rates(form, readers):
    model = lt.attach(llama(), form)
    lt.attach(model, lt.Full(), "params(lm_head.weight)")
    found = rates(optimiser(model, LoRAPlus(ratio=8.0), lr=1e-3, steps=1), model)
    slow = {key for key in found if key.endswith((*(f".{each}" for each in readers), "theta"))}
    assert {found[key] for key in slow} == {1e-3} and {found[key] for key in set(found) - slow} == {8e-3}
