"""The losses and their gradients, against the same equations written out in numpy token by token."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.serving.training_api.losses import LOSSES, loss_named, total

L = [-0.4, -1.3, -2.5, -0.2]
Q = [-0.9, -1.0, -2.4, -0.5]
A = [1.5, -0.7, 2.0, -1.2]
RATIOS = [math.exp(p - q) for p, q in zip(L, Q, strict=True)]


def clip(r, low, high):
    return min(max(r, low), high)


def by_hand(name: str) -> tuple[float, list[float]]:
    """The loss, and its derivative by each log-probability."""
    if name == "cross_entropy":
        return -sum(p * a for p, a in zip(L, A, strict=True)), [-a for a in A]
    if name == "importance_sampling":
        return -sum(r * a for r, a in zip(RATIOS, A, strict=True)), [-r * a for r, a in zip(RATIOS, A, strict=True)]
    if name == "ppo":
        value = -sum(min(r * a, clip(r, 0.8, 1.2) * a) for r, a in zip(RATIOS, A, strict=True))
        free = [r * a <= clip(r, 0.8, 1.2) * a for r, a in zip(RATIOS, A, strict=True)]
        return value, [-r * a * f for r, a, f in zip(RATIOS, A, free, strict=True)]
    if name == "cispo":
        slopes = [-clip(r, 0.8, 1.2) * a for r, a in zip(RATIOS, A, strict=True)]
        return sum(s * p for s, p in zip(slopes, L, strict=True)), slopes
    if name == "dro":
        gaps = [p - q for p, q in zip(L, Q, strict=True)]
        return (-sum(p * a - 0.025 * g * g for p, a, g in zip(L, A, gaps, strict=True)),
                [-(a - 0.05 * g) for a, g in zip(A, gaps, strict=True)])  # fmt: skip
    s = math.exp(sum(p - q for p, q in zip(L, Q, strict=True)) / 4)
    value = -sum(min(s * a, clip(s, 1 - 3e-4, 1 + 4e-4) * a) for a in A)
    return value, [-s * a * (s * a <= clip(s, 1 - 3e-4, 1 + 4e-4) * a) for a in A]


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_is_its_equation(name):
    loss, settings = loss_named(name, {})
    logs = torch.tensor(L, dtype=torch.float64, requires_grad=True)
    given = {"logprobs": torch.tensor(Q).double(), "advantages": torch.tensor(A).double(),
             "weights": torch.tensor(A).double()}  # fmt: skip
    value = total(loss, settings, [given])([logs])
    value.backward()
    wanted, slopes = by_hand(name)
    assert value.item() == pytest.approx(wanted, abs=1e-6)
    assert logs.grad.tolist() == pytest.approx(slopes, abs=1e-6)


def test_bounds_may_be_stated_token_by_token():
    loss, settings = loss_named("ppo", {"clip_high_threshold": 10.0})
    given = {"logprobs": torch.tensor(Q), "advantages": torch.tensor([1.0] * 4),
             "clip_high_threshold": torch.tensor([1.0, 9, 9, 9])}  # fmt: skip
    value = total(loss, settings, [given])([torch.tensor(L)])
    assert value.item() == pytest.approx(-(1.0 + sum(RATIOS[1:])), abs=1e-5)


def test_an_answer_without_an_advantage_has_no_gspo_and_still_a_gradient_of_zero():
    loss, settings = loss_named("gspo", {})
    logs = torch.tensor(L, requires_grad=True)
    total(loss, settings, [{"logprobs": torch.tensor(Q), "advantages": torch.zeros(4)}])([logs]).backward()
    assert logs.grad.eq(0).all()


def test_a_mask_of_gspo_that_leaves_no_token_is_wrong_beside_advantages_alone():
    """A padding row has neither."""
    loss, _ = loss_named("gspo", {})
    none, some = torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert "is 0 at every token" in loss.wrong({"advantages": some, "sequence_ratio_mask": none})
    fitting = [{"advantages": none, "sequence_ratio_mask": none}, {"advantages": some, "sequence_ratio_mask": some}]
    assert not any(loss.wrong(given) for given in [*fitting, {"advantages": some}])


def test_the_mask_of_gspo_says_which_tokens_its_ratio_is_of():
    loss, settings = loss_named("gspo", {"clip_low_threshold": 0.0, "clip_high_threshold": 100.0})
    given = {"logprobs": torch.tensor(Q), "advantages": torch.tensor([0.0, 2.0, 0.0, 0.0]),
             "sequence_ratio_mask": torch.tensor([1.0, 1.0, 0.0, 0.0])}  # fmt: skip
    logs = torch.tensor(L, requires_grad=True)
    value = total(loss, settings, [given])([logs])
    value.backward()
    s = math.exp((L[0] - Q[0] + L[1] - Q[1]) / 2)
    assert value.item() == pytest.approx(-2 * s, abs=1e-6)
    assert logs.grad.tolist() == pytest.approx([0.0, -2 * s, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(("name", "config", "says"), [
    ("stable_reinforce", {}, "stability"), ("custom", {}, "client's side"),
    ("mse", {}, "expected one of cross_entropy"),
    ("dro", {"gamma": 1.0}, "has no setting 'gamma'"), ("dro", {"beta": "much"}, "expected a finite number"),
])  # fmt: skip
def test_what_is_not_run_is_refused_by_name(name, config, says):
    with pytest.raises(LuthierError, match=says):
        loss_named(name, config)
