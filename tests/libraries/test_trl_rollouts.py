"""TRL as the oracle of objectives over sampled answers: advantages, losses and gradients, in float64."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from luthier.core.contracts.objective import ADVANTAGE, OLD_TOKENS, REFERENCE_TOKENS, SAMPLED, Scored, labels_of
from luthier.methods.objectives._online import Online
from luthier.methods.objectives.grpo import GRPO
from luthier.methods.objectives.rloo import RLOO
from support.tiny import TEMPLATE, save_model, sums

trl = pytest.importorskip("trl")
ROWS, PROMPT, LENGTH, WORDS, MOST = 6, 3, 8, 17, 8
CLOSE = {"rtol": 0, "atol": 1e-9}


class Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **inputs):
        return SimpleNamespace(logits=self.logits)


@pytest.fixture
def given():
    """(logits, labels of answers of different lengths, advantages, old and reference log-probabilities)."""
    draw = torch.Generator().manual_seed(0)
    width = PROMPT + LENGTH
    logits = 2 * torch.randn(ROWS, width, WORDS, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, WORDS, (ROWS, width), generator=draw)
    labels[:, :PROMPT] = -100
    for row in range(ROWS):
        labels[row, width - row :] = -100
    old, reference = (noisy(logits, labels, draw, size) for size in (0.3, 0.5))
    return logits, labels, torch.randn(ROWS, generator=draw, dtype=torch.float64), old, reference


def noisy(logits, labels, draw, size) -> torch.Tensor:
    """Log-probabilities of another policy, [rows, T]."""
    moved = logits + size * torch.randn(logits.shape, generator=draw, dtype=torch.float64)
    found = moved[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return nn.functional.pad(found * labels[:, 1:].ne(-100), (0, 1))


def ours(objective: Online, given) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels, advantages, old, reference = given
    logits = logits.clone().requires_grad_()
    batch = {"labels": labels, ADVANTAGE: advantages, SAMPLED: torch.zeros(ROWS, 6)}
    rollouts = objective.rollouts(0, 0)
    assert rollouts is not None
    batch |= {OLD_TOKENS: old} if rollouts.old else {}
    batch |= {REFERENCE_TOKENS: reference} if rollouts.reference else {}
    loss = objective.loss(Fixed(logits), batch)
    assert float(objective.token_counts(batch, labels_of(batch, True)).sum()) > 0
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def theirs(trainer, given, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels, advantages, old, reference = given
    logits = logits.clone().requires_grad_()
    mask = labels[:, PROMPT:].ne(-100)
    logs = logits[:, PROMPT - 1 : -1].log_softmax(-1)
    tokens = logs.gather(-1, labels[:, PROMPT:].clamp(min=0)[..., None])[..., 0]
    parts = {name: value[:, PROMPT - 1 : -1] for name, value in (("old", old), ("reference", reference))}
    it = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (tokens, torch.zeros_like(tokens), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level="token", current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=True), max_completion_length=MOST, _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction=None: x),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1), **settings,
    )  # fmt: skip
    it.accelerator.gather_for_metrics = lambda x: x
    inputs = {
        "prompt_ids": labels[:, :PROMPT], "prompt_mask": torch.ones(ROWS, PROMPT), "advantages": advantages,
        "completion_ids": labels[:, PROMPT:], "completion_mask": mask.double(), "num_items_in_batch": mask.sum(),
        "old_per_token_logps": parts["old"], "ref_per_token_logps": parts["reference"],
        "old_logps": (parts["old"] * mask).sum(1),
    }  # fmt: skip
    loss = trainer._compute_loss(it, Fixed(logits), inputs)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def equal(left, right) -> None:
    assert left[1].abs().sum() > 0
    for mine, other in zip(left, right, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(("variant", "high"), [("grpo", 0.2), ("dr_grpo", 0.2), ("dapo", 0.28)])
def test_grpo(given, variant, high, beta):
    chosen = GRPO(variant=variant, beta=beta, iterations=2, max_tokens=MOST)
    other = theirs(trl.GRPOTrainer, given, beta=beta, epsilon_low=0.2, epsilon_high=high, loss_type=variant)
    equal(ours(chosen, given), other)


def test_rloo(given):
    other = theirs(trl.RLOOTrainer, given, beta=0.0, epsilon_low=0.2, epsilon_high=0.2)
    equal(ours(RLOO(beta=0.0, iterations=2), given), other)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("trl"), "llama", TEMPLATE)


def length(completions, **_) -> list[float]:
    return [len(each[0]["content"] if isinstance(each, list) else each) ** 1.3 for each in completions]


SCALES = {"grpo": ("group", GRPO()), "dr_grpo": ("none", GRPO(variant="dr_grpo"))}


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_advantages(model, name, tmp_path):
    """Of the answers that TRL's trainer has sampled and scored in one step; it computes in float32."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shared = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 1,
        "max_completion_length": 6, "report_to": "none", "use_cpu": True, "beta": 0.0, "save_strategy": "no",
        "bf16": False, "logging_steps": 1, "disable_tqdm": True, "temperature": 1.0,
    }  # fmt: skip
    config = trl.RLOOConfig(**shared) if name == "rloo" else trl.GRPOConfig(**shared, scale_rewards=SCALES[name][0])
    cls = trl.RLOOTrainer if name == "rloo" else trl.GRPOTrainer
    rows = Dataset.from_list([{"prompt": row["prompt"]} for row in sums(8)])
    loaded = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
    words = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    trainer = cls(loaded, reward_funcs=length, args=config, train_dataset=rows, processing_class=words)
    trainer.train()
    rewards = torch.tensor(list(trainer._logs["rewards"]["length"]), dtype=torch.float64).view(-1, 4)
    wanted = torch.tensor(list(trainer._logs["advantages"]), dtype=torch.float64).view(-1, 4)
    chosen = RLOO(beta=0.0) if name == "rloo" else SCALES[name][1]
    zero = torch.zeros_like(rewards)
    scored = Scored(rewards, zero + 3, zero.bool(), zero)
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(chosen.advantages(scored), wanted, rtol=1e-5, atol=1e-5)


def test_the_penalty_of_rloo_is_in_the_reward():
    """r - β KL before the others' mean is taken off, as TRL has it."""
    rewards = torch.tensor([[1.0, 0.0, 2.0, 0.5]], dtype=torch.float64)
    kl = torch.tensor([[0.1, -0.2, 0.4, 0.0]], dtype=torch.float64)
    scored = Scored(rewards, rewards * 0, rewards.bool() & False, kl)
    whole = rewards - 0.3 * kl
    others = (whole.sum(1, keepdim=True) - whole) / 3
    torch.testing.assert_close(RLOO(beta=0.3).advantages(scored), whole - others, **CLOSE)
    one = dataclasses.replace(scored, rewards=torch.tensor([[1.0, torch.nan, torch.nan, torch.nan]]).double())
    assert RLOO(beta=0.0).advantages(one).eq(0).all()


def test_the_punishment_of_long_answers_is_trls():
    from trl.rewards import get_soft_overlong_punishment

    lengths = torch.arange(1, 21, dtype=torch.float64)
    wanted = get_soft_overlong_punishment(20, 4)([[0] * int(n) for n in lengths])
    found = GRPO(variant="dapo", max_tokens=20, cache=4).punishment(lengths)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), **CLOSE)
