"""AMFT's meta-gradient: against finite differences, sign included, and what one step of it does."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.contracts.objective import ADVANTAGE, SAMPLED, SAMPLED_FIGURES, At, labels_of
from luthier.core.errors import LuthierError
from luthier.data import Collator
from luthier.methods.objectives import _cross_entropy
from luthier.methods.objectives.amft import AMFT, meta_gradient
from luthier.training.rollouts.features import answered, in_parts
from luthier.training.rollouts.slopes import slopes_of
from support.architectures import ARCHITECTURES

ETA, NOW = 1e-3, At(0, 10, True)
CHOSEN = AMFT(beta=0.0, group=3)


def rows(seed: int, count: int) -> list[dict]:
    draw = torch.Generator().manual_seed(seed)
    ids = lambda: torch.randint(4, 60, (4,), generator=draw).tolist()  # noqa: E731
    return [answered(ids(), ids(), i) for i in range(count)]


def batch(sampled: list[dict], own: list[dict], advantages: torch.Tensor) -> dict:
    made = Collator(0)(in_parts(sampled, own))
    extra = advantages.new_zeros(len(own))
    zero = torch.zeros(len(sampled) + len(own), len(SAMPLED_FIGURES))
    return made | {ADVANTAGE: torch.cat([advantages, extra]), SAMPLED: zero}


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """transformers takes the loss in float32, in which no difference can be seen."""

    def loss(model, batch):
        logits = model(**batch).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())

    monkeypatch.setattr(_cross_entropy, "causal_loss", loss)


@pytest.fixture(scope="module")
def given():
    """(a model without norms in float32, two batches of a step, a batch of held-out rows)."""
    model = lt.attach(ARCHITECTURES["gpt2"].build(0, dtype=torch.float64), lt.LoRA(rank=2, dropout=0.3))
    draw = torch.Generator().manual_seed(5)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    advantages = torch.tensor([1.3, -0.2, -1.1], dtype=torch.float64)
    batches = [batch(rows(seed, 3), rows(seed + 50, 2), advantages * (1 + seed)) for seed in (0, 1)]
    return model, batches, [Collator(0)(rows(99, 4))]


def counts_of(inputs: dict) -> torch.Tensor:
    return CHOSEN.token_counts(inputs, labels_of(inputs, True))


def slopes(given) -> list[float]:
    model, batches, held = given
    return slopes_of(model, CHOSEN, batches, held, NOW, counts_of, lambda batch: batch)


def loss_of(model, batches: list[dict], mu: float) -> torch.Tensor:
    totals = torch.stack([counts_of(each) for each in batches]).sum(0)
    shares = [CHOSEN.part_weights(totals, {"mu": mu}) * counts_of(each) / totals.clamp(min=1) for each in batches]
    inputs = [{key: value for key, value in each.items() if key != "rows"} for each in batches]
    return sum((CHOSEN.loss(model, each) * s.double()).sum() for each, s in zip(inputs, shares, strict=True))  # type: ignore[return-value]


def held_after(given, mu: float, eta: float = ETA) -> float:
    """L_val(θ - η ∇L(μ)), from the definition."""
    model, batches, held = given
    model.eval()
    trained = list(lt.trainable(model).values())
    found = torch.autograd.grad(loss_of(model, batches, mu), trained)
    before = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for p, slope in zip(trained, found, strict=True):
            p -= eta * slope
        value = float(loss_of(model, held, mu))
        for p, old in zip(trained, before, strict=True):
            p.copy_(old)
    return value


def difference(given, mu: float, eta: float, h: float = 0.2) -> float:
    return (held_after(given, mu + h, eta) - held_after(given, mu - h, eta)) / (2 * h)


def test_the_meta_gradient_is_the_finite_difference(given):
    """To 1e-5 of it, where the step's second order is taken out by a step back; the sign is that of the definition."""
    eta = 1e-5
    exact = (difference(given, 0.6, eta) - difference(given, 0.6, -eta)) / 2
    ours = meta_gradient(eta, slopes(given))
    assert abs(exact) > 1e-6
    assert ours == pytest.approx(exact, rel=1e-5)
    assert -ours != pytest.approx(exact, rel=1e-5)


def test_a_step_of_mu_lowers_the_held_out_loss(given):
    """The move of μ is downhill for the loss behind the step; the flipped sign is uphill."""
    found = slopes(given)
    quick = AMFT(beta=0.0, mu=0.6, mu_lr=abs(0.1 / meta_gradient(ETA, found)), entropy_lr=0.0)
    moved = quick.steer({"mu": 0.6}, ETA, found)["mu"]
    assert abs(moved - 0.6) == pytest.approx(0.1)
    assert held_after(given, moved) < held_after(given, 0.6) < held_after(given, 1.2 - moved)


def test_slopes_do_not_depend_on_dropout(given):
    """Every look gives the same; the model's mode and the random state are as before."""
    model = given[0]
    model.train()
    before = torch.random.get_rng_state()
    once, twice = slopes(given), slopes(given)
    assert once == twice and model.training and torch.equal(before, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_entropy_pulls_mu_and_bounds_hold_it():
    chosen = AMFT(mu_lr=0.0, entropy_lr=0.5, targets=2)
    state: dict = {}
    for step, entropy in enumerate((2.0, 1.0, 1.2)):
        state = chosen.observe(state, step, {"entropy": entropy})
    assert state["target_entropy"] == 1.5 and state["entropy"] == 1.2
    assert chosen.steer(state, 0.1, [1.0, 2.0])["mu"] == pytest.approx(0.8 + 0.5 * 0.3)
    assert chosen.steer({**state, "entropy": 0.5}, 0.1, [1.0, 2.0])["mu"] == 0.95
    assert chosen.steer({**state, "entropy": 9.0}, 0.1, [1.0, 2.0])["mu"] == 0.05
    assert chosen.observe(state, 9, {}) == state


def test_the_warm_up_is_fine_tuning(given):
    model, _, held = given
    chosen = AMFT(sft_steps=3)
    assert chosen.rollouts(2, 0) is None and chosen.rollouts(3, 0) is not None
    inputs = {key: value for key, value in held[0].items() if key != "rows"}
    model.eval()
    means = chosen.loss(model, inputs)
    torch.testing.assert_close(means[1].float(), lt.SFT().loss(model, inputs).float())
    assert means[0] == 0
    assert chosen.part_weights(counts_of(inputs), {"mu": 0.3}).tolist() == [0.0, 1.0]


def test_settings_out_of_range_are_refused():
    for wrong in (
        {"mu": 1.2},
        {"mu": 0.01},
        {"mu_min": 0.9, "mu": 0.5},
        {"every": 0},
        {"sft_steps": 3, "iterations": 2},
    ):
        with pytest.raises(LuthierError):
            AMFT.from_dict(wrong)
