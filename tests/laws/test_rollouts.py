"""The laws of objectives over sampled answers, over the registry, and with every form of the registry."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.objective import ADVANTAGE, OLD_TOKENS, PART, Objective, Scored, labels_of
from luthier.core.contracts.router import names_of
from luthier.core.errors import LuthierError
from luthier.data import Collator
from luthier.engine.sampler import Ask, Sampler
from luthier.methods.log_probs import token_log_probs
from luthier.methods.objectives.grpo import GRPO
from luthier.methods.objectives.rloo import RLOO
from luthier.training.rollouts.features import answered
from support.architectures import ARCHITECTURES, decoding_forms
from support.sampled import PROMPTS, batch_of, rows_of
from support.tiny import tokenizer

OBJECTIVES = [name for name in names("objectives") if find("objectives", name, Objective)().reward_specs()]
FORMS = [name for name in decoding_forms() if len(names_of(find("forms", name, Form)())) <= 1]
VARIANTS = [GRPO(), GRPO(variant="dr_grpo"), GRPO(variant="dapo", iterations=2), RLOO(), RLOO(iterations=2)]


def adapted(form: Form | None = None, dtype: torch.dtype = torch.float64):
    """A model with the form on it, away from its start."""
    model = lt.attach(ARCHITECTURES["qwen2"].build(0, dtype=dtype), form or lt.LoRA(rank=2))
    draw = torch.Generator().manual_seed(5)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    return model


def alone(chosen: Objective) -> Objective:
    """The objective by its rewards alone: without a KL term, and whatever the length of an answer."""
    more = {"overlong": "keep"} if isinstance(chosen, GRPO) else {}
    return dataclasses.replace(chosen, beta=0.0, **more)  # type: ignore[call-arg]


def loss_of(chosen: Objective, model, given: dict) -> torch.Tensor:
    means = chosen.loss(model, given)
    counts = chosen.token_counts(given, labels_of(given, True))
    return (means * chosen.part_weights(counts, {}).to(means.dtype)).sum()


def slopes(loss: torch.Tensor, model) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, list(lt.trainable(model).values()), allow_unused=True)
    return [torch.zeros(()) if slope is None else slope for slope in found]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_decodes_and_trains(form):
    """What the engine decodes greedily is what the model under training finds likeliest, edits of positions included,
    after its weights have moved as well; and every objective has a gradient on it."""
    model = adapted(find("forms", form, Form)(), torch.float32)
    sampler = Sampler(model, tokenizer(), "default")
    for moved in (False, True):
        for parameter in lt.trainable(model).values():
            parameter.data *= 0.7 if moved else 1.0
        drawn = sampler([Ask(prompt, 0, 4) for prompt in PROMPTS], 0.0, 1.0)
        rows = [answered(p, d.ids, i) for i, (p, d) in enumerate(zip(PROMPTS, drawn, strict=True))]
        given = Collator(0)(rows)
        given.pop("rows")
        model.eval()
        with torch.no_grad():
            logits = model(**given).logits[:, :-1]
        wanted = given["labels"][:, 1:]
        own = logits.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
        behind = (logits.amax(-1) - own)[wanted.ne(-100)]
        assert float(behind.max()) < 1e-3, form
    model.train()
    for name in OBJECTIVES:
        chosen = find("objectives", name, Objective)()
        loss, figures = chosen.loss_and_figures(model, batch_of(rows_of(chosen), chosen, model))
        assert torch.isfinite(loss).all() and all(torch.isfinite(values).all() for values in figures.values())
        assert set(figures) <= {each for together in chosen.curves for each in together}
        assert sum(float(slope.abs().sum()) for slope in slopes(loss.sum(), model)) > 0, name


@pytest.mark.parametrize("chosen", [alone(each) for each in VARIANTS], ids=str)
def test_a_group_of_equal_rewards_teaches_nothing(chosen):
    model = adapted()
    assert all(float(s.abs().max()) < 1e-12 for s in slopes(
        loss_of(chosen, model, batch_of(rows_of(chosen, equal=True), chosen, model)), model
    ))  # fmt: skip


@pytest.mark.parametrize("chosen", VARIANTS, ids=str)
def test_padding_and_the_division_into_batches_do_not_matter(chosen):
    model, rows = adapted(), rows_of(chosen)
    whole = chosen.loss(model, batch_of(rows, chosen, model))
    for side, multiple in (("left", None), ("right", 16)):
        other = chosen.loss(model, batch_of(rows, chosen, model, side, multiple))
        torch.testing.assert_close(other, whole, rtol=1e-6, atol=1e-6)  # rotary angles: float32
    parts = [batch_of(rows[:2], chosen, model), batch_of(rows[2:], chosen, model)]
    counts = torch.stack([chosen.token_counts(each, labels_of(each, True)) for each in parts]).double()
    losses = torch.stack([chosen.loss(model, each).reshape(-1) for each in parts])
    torch.testing.assert_close((losses * counts).sum(0) / counts.sum(0), whole.reshape(-1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_answers_of_unknown_reward_are_left_out(name):
    """Neither of the group's mean nor of the loss."""
    chosen = find("objectives", name, Objective)()
    rewards = torch.tensor([[1.0, 0.0, 3.0, torch.nan]], dtype=torch.float64)
    zero = torch.zeros_like(rewards)
    scored = Scored(rewards, zero, zero.bool(), zero)
    alone = Scored(rewards[:, :3], zero[:, :3], zero[:, :3].bool(), zero[:, :3])
    found = chosen.advantages(scored)
    torch.testing.assert_close(found[:, :3], chosen.advantages(alone), rtol=0, atol=1e-12)
    assert found[0, 3] == 0 and chosen.left_out(scored).tolist() == [[False, False, False, True]]
    model = adapted()
    batch = batch_of(rows_of(chosen), chosen, model)
    batch["labels"][0] = -100
    if PART not in batch:
        less = {key: value[1:] for key, value in batch.items()}
        torch.testing.assert_close(loss_of(chosen, model, batch), loss_of(chosen, model, less), rtol=1e-9, atol=1e-12)
        counts = chosen.token_counts(batch, labels_of(batch, True))
        assert torch.equal(counts, chosen.token_counts(less, labels_of(less, True)))


def test_clipping_is_one_sided():
    """A ratio that has moved on where the advantage wanted it has no gradient; one that went the wrong way has."""
    model, chosen = adapted(), GRPO(beta=0.0, iterations=2)
    for gap, advantage, moves in ((-1.0, 1.0, False), (-1.0, -1.0, True), (1.0, -1.0, False), (1.0, 1.0, True)):
        batch = batch_of(rows_of(chosen), chosen, model)
        batch[OLD_TOKENS] += 0.05 + gap
        batch[ADVANTAGE] = torch.full_like(batch[ADVANTAGE], advantage)
        total = sum(float(slope.abs().sum()) for slope in slopes(loss_of(chosen, model, batch), model))
        assert (total > 1e-6) is moves, (gap, advantage)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_in_chunks_are_those_of_whole_logits(monkeypatch, dtype, temperature):
    from luthier.methods.objectives import _cross_entropy

    model = adapted(lt.LoRA(rank=2), dtype)
    ids = ARCHITECTURES["qwen2"].inputs(3, 11)["input_ids"]
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.4, -100)
    given = {"input_ids": ids, "labels": labels}
    weights = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    whole, entropy = token_log_probs(model, given, temperature, entropy=True)
    slow = slopes((whole * weights).sum(), model)
    monkeypatch.setattr(_cross_entropy, "VOCABULARY", 0)
    monkeypatch.setitem(_cross_entropy.CHUNK, "cpu", 3)
    monkeypatch.setattr(_cross_entropy, "FEW", 0)
    found, told = token_log_probs(model, given, temperature, entropy=True)
    rough = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, whole, rtol=rough, atol=rough)
    torch.testing.assert_close(told, entropy, rtol=rough, atol=rough)
    assert torch.equal(found.ne(0), labels[:, 1:].ne(-100)) and not told.requires_grad
    for mine, other in zip(slopes((found * weights).sum(), model), slow, strict=True):
        torch.testing.assert_close(mine, other, rtol=10 * rough, atol=rough * float(other.abs().max()))


def test_settings_that_would_be_ignored_are_refused():
    for wrong in ({"epsilon": 0.3}, {"epsilon_high": 0.3}, {"cache": 4}, {"group": 1}, {"reward": []},
                  {"temperature": 0.0}, {"variant": "dapo", "overlong": "keep", "cache": 4}):  # fmt: skip
        with pytest.raises(LuthierError):
            GRPO.from_dict(wrong)
    with pytest.raises(LuthierError):
        RLOO.from_dict({"epsilon": 0.3})
