"""Each penalty against its equation in float64, on made-up losses."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.penalty import Penalty, PenaltyStep, copies

PENALTIES = names("penalties")


def made(name: str, **settings) -> Penalty:
    found = find("penalties", name, Penalty)
    return found.from_dict(settings)


def params(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=draw, dtype=torch.float64) for key, shape in SHAPES.items()}


SHAPES = {"a": (3, 4), "b": (5,)}


def task(penalty: Penalty, kept, p, seed: int, steps: int = 12):
    """(running state, tensors, steps) after gradient steps on a quadratic loss."""
    middle, running, seen = params(seed), penalty.begin(p, kept), []
    for number in range(1, steps + 1):
        gradient = {key: p[key] - middle[key] for key in p}
        after = {key: p[key] - 0.1 * gradient[key] for key in p}
        seen.append(PenaltyStep(number, gradient, copies(p), copies(after)))
        penalty.follow(running, seen[-1])
        p = after
    return running, p, seen


@pytest.mark.parametrize("name", PENALTIES)
def test_it_states_its_equation_source_and_off_switch(name):
    cls = find("penalties", name, Penalty)
    assert len(cls.equation()) > 5 and cls.paper and cls.name() == name
    kept = {"anchor": params(), "importance": params(1)}
    assert made(name, weight=0.0).gradient(params(2), kept) == {}
    with pytest.raises(lt.LuthierError, match="weight is -1"):
        made(name, weight=-1.0)


@pytest.mark.parametrize("name", PENALTIES)
def test_its_gradient_is_that_of_its_charge(name):
    penalty, kept, p = made(name), {}, params()
    for seed in (1, 2):
        running, p, _ = task(penalty, kept, p, seed)
        fisher = {key: t.square() for key, t in params(seed + 10).items()}
        kept = penalty.finish(kept, running, p, fisher)
    state = {**kept, **penalty.begin(p, kept)}
    at = {key: t + 0.3 for key, t in p.items()}
    gradient, charge = penalty.gradient(at, state), penalty.charge(at, state)
    assert charge > 0
    for key, place in (("a", (1, 2)), ("b", (3,))):
        ends = []
        for sign in (1, -1):
            moved = copies(at)
            moved[key][place] += sign * 1e-5
            ends.append(penalty.charge(moved, state))
        slope = float(ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float(gradient[key][place]), rel=1e-6, abs=1e-9)


def test_ewc_is_the_sum_over_tasks_in_the_memory_of_one():
    """Σ_k F_k (θ - θ_k)² up to a constant: differences between two places are equal."""
    penalty, kept, told = made("ewc", weight=0.7), {}, []
    for seed in (1, 2, 3):
        anchor, fisher = params(seed), {key: t.square() for key, t in params(seed + 20).items()}
        fisher["b"][0] = 0.0  # an entry that no task is sensitive to
        told.append((anchor, fisher))
        kept = penalty.finish(kept, {}, anchor, fisher)

    def whole(p) -> float:
        return 0.7 * float(sum((f[key] * (p[key] - at[key]).square()).sum() for at, f in told for key in p))

    left, right = params(30), params(31)
    difference = float(penalty.charge(left, kept) - penalty.charge(right, kept))
    assert difference == pytest.approx(whole(left) - whole(right), rel=1e-12)
    assert sorted(kept) == ["anchor", "importance"]


def test_si_is_the_path_integral():
    penalty, p = made("si", weight=1.0, damping=0.05), params()
    running, end, seen = task(penalty, {}, p, 1)
    kept = penalty.finish({}, running, end, {})
    for key in p:
        path = -sum(step.gradient[key] * (step.after[key] - step.before[key]) for step in seen)
        wanted = path.clamp(min=0) / ((end[key] - p[key]).square() + 0.05)
        torch.testing.assert_close(kept["importance"][key], wanted, rtol=1e-12, atol=0)
    again = penalty.finish(kept, *task(penalty, kept, end, 2)[:2], {})
    assert all((again["importance"][key] >= kept["importance"][key]).all() for key in p)


def test_on_a_straight_path_si_is_the_loss_that_each_entry_lowered():
    """For a quadratic and small steps, w_i → L_i(start) - L_i(end) of each entry."""
    penalty, p, middle = made("si"), {"b": torch.tensor([1.0, -2.0], dtype=torch.float64)}, torch.zeros(2)
    running, start = penalty.begin(p, {}), p["b"].clone()
    for number in range(1, 4001):
        gradient = {"b": p["b"] - middle}
        after = {"b": p["b"] - 1e-3 * gradient["b"]}
        penalty.follow(running, PenaltyStep(number, gradient, p, after))
        p = after
    lowered = (start.square() - p["b"].square()) / 2
    torch.testing.assert_close(running["path"]["b"], lowered, rtol=2e-3, atol=0)


def test_rwalk_follows_its_two_recursions():
    penalty, p = made("rwalk", alpha=0.6, every=4, damping=1e-3), params()
    running, end, seen = task(penalty, {}, p, 1)
    kept = penalty.finish({}, running, end, {})
    fisher, score = {}, {key: torch.zeros_like(t) for key, t in p.items()}
    for key in p:
        f = seen[0].gradient[key].square()
        for step in seen:
            f = f if step is seen[0] else 0.6 * step.gradient[key].square() + 0.4 * f
            if step.number % 4 == 0:
                chunk = seen[step.number - 4 : step.number]
                lowered = -sum(s.gradient[key] * (s.after[key] - s.before[key]) for s in chunk)
                way = (chunk[-1].after[key] - chunk[0].before[key]).square()
                score[key] += lowered / (0.5 * f * way + 1e-3)
        fisher[key] = f
    most = max(float(t.max()) for t in fisher.values()), max(float(t.max()) for t in score.values())
    for key in p:
        wanted = fisher[key] / most[0] + score[key].clamp(min=0) / most[1]
        torch.testing.assert_close(kept["importance"][key], wanted, rtol=1e-10, atol=1e-12)
    later = penalty.finish(kept, *task(penalty, kept, end, 2)[:2], {})
    assert later["importance"]["a"].max() <= 2


def test_l2_sp_is_ridge_around_the_start():
    penalty, p = made("l2_sp", weight=0.5), params()
    state = penalty.begin(p, {})
    assert penalty.charge(p, state) == 0
    moved = {key: t + 2.0 for key, t in p.items()}
    assert float(penalty.charge(moved, state)) == pytest.approx(0.5 * 4 * 17)
    assert not penalty.remembers
