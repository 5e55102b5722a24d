"""Meta-learning: the outer step against its equation, adapting in new domains, exact resume, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.meta import Meta
from luthier.training.adam_state import AdamState
from luthier.training.meta import MetaRun, meta_learn
from luthier.training.meta.episodes import in_context
from support.tiny import write_rows

METAS = names("metas")


def quadratic(params, rows) -> torch.Tensor:
    """½ Σ a (θ - b)², whose gradient is a (θ - b)."""
    a, b = rows
    return 0.5 * (a * (params["w"] - b).square()).sum()


def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(5, generator=draw, dtype=torch.float64), torch.randn(5, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("name", METAS)
def test_without_an_inner_rate_a_step_is_the_multi_task_step(name):
    """Bit for bit, whatever the demonstrations are."""
    cls = find("metas", name, Meta)
    assert len(cls.equation()) > 5 and cls.paper and cls.name() == name
    params, (a, b) = {"w": torch.ones(5, dtype=torch.float64)}, rows(1)
    method = cls.from_dict({**cls().to_dict(), **cls.neutral})
    for shown in (rows(2), rows(3)):
        value, slopes = method.outer(quadratic, params, shown, (a, b), torch.Generator())
        assert torch.equal(slopes["w"], a * (params["w"] - b)) and torch.equal(value, quadratic(params, (a, b)))


def test_the_outer_gradient_is_taken_where_the_inner_loop_ends():
    """θ' by hand in float64; the full MAML gradient is another one."""
    params, (a, b), (c, d) = {"w": torch.ones(5, dtype=torch.float64)}, rows(1), rows(2)
    method = lt.metas.FOMAML(inner_lr=0.3, inner_steps=2)
    _, slopes = method.outer(quadratic, params, (c, d), (a, b), torch.Generator())
    w = params["w"]
    for _ in range(2):
        w = w - 0.3 * c * (w - d)
    torch.testing.assert_close(slopes["w"], a * (w - b), rtol=1e-12, atol=0)
    full = (1 - 0.3 * c) ** 2 * slopes["w"]
    assert (full - slopes["w"]).abs().max() > 1e-2 and torch.equal(params["w"], torch.ones(5, dtype=torch.float64))


@pytest.fixture(scope="module")
def domains(tmp_path_factory) -> list[str]:
    """In each domain the answer is one letter, always: one demonstration tells it."""
    folder = tmp_path_factory.mktemp("domains")
    return [
        write_rows(folder / f"{c}.jsonl", [{"prompt": f"{x}{i}=", "completion": c * 3} for i, x in enumerate("pqrstu")])
        for c in "abcde"
    ]


def spec_of(llama: str, domains, out: Path, **more) -> MetaRun:
    settings = {"steps": 6, "lr": 1e-2, "asked": 3, "episodes": 4, "together": 2, **more}
    meta = lt.metas.FOMAML(inner_lr=1.0, inner_steps=2)
    return MetaRun(llama, tuple(domains[:4]), (domains[4],), meta, lt.LoRA(rank=4), str(out), "all-linear", **settings)


def test_base_joint_training_and_the_learner_are_measured_side_by_side(llama, domains, tmp_path):
    done = meta_learn(spec_of(llama, domains, tmp_path / "run"), progress=False)
    assert list(done.figures) == ["base", "joint", "fomaml"]
    assert all(each["low"] <= each["loss"] <= each["high"] for ways in done.figures.values() for each in ways.values())
    written = json.loads((tmp_path / "run" / "learned.json").read_text())
    assert written["figures"] == done.figures and written["gains"] == done.gains
    for way, told in done.gains.items():
        joint, learner = (written["episodes"][name][way] for name in ("joint", "fomaml"))
        apart = [left - right for left, right in zip(joint, learner, strict=True)]
        assert len(apart) == 4 and told["loss"] == pytest.approx(sum(apart) / 4)
        assert min(apart) <= told["low"] <= told["loss"] <= told["high"] <= max(apart)


class Killed(BaseException):
    """Instead of a signal."""


def test_a_killed_run_goes_on_exactly(llama, domains, tmp_path, monkeypatch):
    whole = meta_learn(spec_of(llama, domains, tmp_path / "whole", save_every=2), progress=False)
    true, count = AdamState.step, [0]

    def dying(self):
        count[0] += 1
        if count[0] in (4, 12):  # in the joint training and in the other
            raise Killed
        true(self)

    monkeypatch.setattr(AdamState, "step", dying)
    spec = spec_of(llama, domains, tmp_path / "killed", save_every=2)
    for attempt in range(2):
        with pytest.raises(Killed):
            meta_learn(spec, resume=attempt > 0, progress=False)
    done = meta_learn(spec, resume=True, progress=False)
    left, right = (load_file(each.adapter / "adapter.safetensors") for each in (whole, done))
    assert all(torch.equal(left[key], right[key]) for key in left) and whole.figures == done.figures


def test_demonstrations_before_a_prompt_are_not_in_the_loss(domains):
    from luthier import data
    from support.tiny import tokenizer

    read = data.load(domains[0])
    (row,) = in_context(read, [0], [1]).rows
    assert [turn["content"] for turn in row.messages or []] == ["p0=", "aaa", "q1=", "aaa"]
    (feature,) = data.encode_all(in_context(read, [0], [1]), tokenizer(), max_length=None)
    learned = [i for i in feature["labels"] if i != -100]
    assert tokenizer().decode(learned).startswith("aaa") and tokenizer().decode(learned).count("a") == 3


def test_domains_that_do_not_serve_are_told_before_the_weights(llama, domains, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    with pytest.raises(lt.LuthierError, match="is learned and tested"):
        spec_of(llama, [*domains[:4], domains[0]], tmp_path)
    with pytest.raises(lt.LuthierError, match="6 rows, and an episode takes 6 demonstrations"):
        meta_learn(spec_of(llama, domains, tmp_path / "a", shots=6), progress=False)
    text = write_rows(tmp_path / "text.jsonl", [{"text": "abc"}, {"text": "def"}])
    with pytest.raises(lt.LuthierError, match="hold no prompt and answer"):
        meta_learn(spec_of(llama, [text, *domains[1:]], tmp_path / "a"), progress=False)


# --- ABMLL ------------------------------------------------------------------------------------------


def gaussians(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mean = torch.randn(4, generator=draw, dtype=torch.float64)
    return {"w": mean, "scale/w": 0.3 * torch.randn(4, generator=draw, dtype=torch.float64)}


def test_the_closed_divergence_is_what_samples_say():
    from luthier.methods.metas.abmll import divergence

    q, p = gaussians(0), gaussians(1)
    left, right = (torch.distributions.Normal(each["w"], each["scale/w"].exp()) for each in (q, p))
    found = left.sample((200_000,))
    ratios = (left.log_prob(found) - right.log_prob(found)).sum(-1)
    error = float(ratios.std() / len(ratios) ** 0.5)
    assert abs(4 * float(divergence(q, p)) - float(ratios.mean())) < 4 * error
    wanted = float(torch.distributions.kl_divergence(left, right).mean())
    assert float(divergence(q, p)) == pytest.approx(wanted, rel=1e-12) and float(divergence(q, q)) == 0


def test_as_the_scale_goes_to_nothing_it_is_the_first_order_one():
    params, shown, asked = {"w": torch.ones(5, dtype=torch.float64)}, rows(1), rows(2)
    wanted = lt.metas.FOMAML(inner_lr=0.2, inner_steps=2).outer(quadratic, params, shown, asked, torch.Generator())
    apart = []
    for scale in (1e-2, 1e-5):
        method = lt.metas.ABMLL(inner_lr=0.2, inner_steps=2, scale=scale, beta=0.0, gamma=0.0)
        draw = torch.Generator().manual_seed(0)
        _, slopes = method.outer(quadratic, {**params, **method.begin(params)}, shown, asked, draw)
        apart.append(float((slopes["w"] - wanted[1]["w"]).abs().max()))
    assert apart[1] < 1e-4 < apart[0]
    none = lt.metas.ABMLL(inner_lr=0.2, inner_steps=2, scale=0.0, beta=0.0, gamma=0.0)
    assert none.begin(params) == {}
    assert torch.equal(none.outer(quadratic, params, shown, asked, torch.Generator())[1]["w"], wanted[1]["w"])


def test_the_divergences_reach_theta_by_their_own_gradient():
    """With no inner loop, no data and q = θ: the gradient is that of γ KL(θ || prior), by finite differences."""
    method = lt.metas.ABMLL(inner_lr=0.0, scale=0.1, beta=0.5, gamma=0.7, prior=0.4)
    theta = gaussians(3)

    def nothing(params, rows):
        return 0.0 * params["w"].sum()

    _, slopes = method.outer(nothing, theta, None, None, torch.Generator())
    for key in theta:
        ends = []
        for sign in (1, -1):
            moved = {name: t.clone() for name, t in theta.items()}
            moved[key][2] += sign * 1e-6
            ends.append(float(method._from_prior(moved)))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(slopes[key][2]), rel=1e-5)


def test_abmll_averages_over_samples_and_says_how_calibrated_it_is(llama, domains, tmp_path):
    from dataclasses import replace

    spec = spec_of(llama, domains, tmp_path / "run", steps=3, baseline=False)
    done = meta_learn(replace(spec, meta=lt.metas.ABMLL(inner_lr=0.5, scale=0.05)), progress=False)
    assert list(done.figures) == ["base", "abmll"] and 0 <= done.figures["abmll"]["adapted"]["calibration"] <= 1


def test_the_calibration_error_is_the_mean_gap_of_bins():
    import numpy as np

    from luthier.core.numerics.confidence import calibration_error

    sure, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, True, True, False])
    assert calibration_error(sure, right, bins=10) == pytest.approx((0.05 * 2 + 0.05 * 2) / 4)
