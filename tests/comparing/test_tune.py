"""The search for a method's settings."""

from __future__ import annotations

import json
import math

import pytest

import luthier as lt
from luthier.comparing import Study, records, runner, tune
from luthier.training.spec import Run

pytest.importorskip("optuna")


def search(value, count: int = 12, own: float = 1e-3) -> list[dict]:
    """The trials of a search whose losses `value` gives."""
    trials: list[dict] = []
    while len(trials) < count:
        tried = tune.propose(trials, own, {})
        trials.append(tried | {"value": value(tried["lr"])})
    return trials


def bowl(lr: float) -> float:
    return (math.log10(lr) + 2.4) ** 2


def test_it_finds_the_lowest_loss_within_its_bounds():
    trials = search(bowl)
    assert [trial["lr"] / 1e-3 for trial in trials[:4]] == pytest.approx([1, 10**0.5, 10, 10**-0.5])
    assert all(1e-4 <= trial["lr"] <= 1e-2 for trial in trials)
    best = tune.best_of(trials, "run")
    assert best["value"] == min(trial["value"] for trial in trials) < bowl(1e-3) / 10


def test_it_turns_to_the_side_that_did_better():
    for value, shares in ((lambda lr: -lr, [1, 10**0.5, 10, 10**-0.5]), (lambda lr: lr, [1, 10**0.5, 10**-0.5, 0.1])):
        assert [trial["lr"] / 1e-3 for trial in search(value, 4)] == pytest.approx(shares)
    assert [t["lr"] / 1e-3 for t in search(lambda lr: None if lr > 1e-3 else lr, 3)] == pytest.approx(
        [1, 10**0.5, 10**-0.5]
    )


def test_a_search_that_was_cut_goes_on_as_it_would_have():
    whole = search(bowl)
    for cut in (1, 4, 8):
        assert tune.propose(whole[:cut], 1e-3, {})["lr"] == whole[cut]["lr"]


@pytest.mark.parametrize(
    ("form", "budget", "searched"),
    [
        (lt.LoRA(rank=8), None, {"rank": (8, 2, 4, 16, 32)}),
        (lt.LoRA(rank=1), None, {"rank": (1, 2, 4)}),
        (lt.LoRA(rank=8), "1%", {}),
        (lt.LoReFT(positions="f2"), "1%", {"positions": ("f2", *tune.POSITIONS)}),
        (lt.BitFit(), None, {}),
    ],
)
def test_what_is_searched(form, budget, searched):
    assert tune.space(Run("model", "data", form, budget=budget)) == searched


def test_rank_and_positions_are_found():
    """A loss that only the right rank and positions make small."""
    searched = tune.space(Run("model", "data", lt.LoReFT(rank=8)))
    trials = []
    while len(trials) < 40:
        tried = tune.propose(trials, 1e-3, searched)
        trials.append(tried | {"value": (tried["rank"] != 32) + (tried["positions"] != "f3+l3") + bowl(tried["lr"])})
    assert {trial["rank"] for trial in trials[:4]} == {8} and {trial["positions"] for trial in trials[:4]} == {"f7+l7"}
    best = tune.best_of(trials, "run")
    run = tune._at(Run("model", "data", lt.LoReFT(rank=8)), best)
    assert run.form == lt.LoReFT(rank=32, positions="f3+l3") and run.training.lr == best["lr"]


def test_diverging_rates_are_left():
    trials = search(lambda lr: None if lr > 2e-3 else bowl(lr), 15)
    assert tune.best_of(trials, "run")["lr"] <= 2e-3 and sum(t["value"] is None for t in trials[5:]) <= 5
    with pytest.raises(ValueError, match="diverged at every"):
        tune.best_of([{"lr": 1.0, "value": None}], "run")


def test_every_method_gets_the_same_trials_and_the_best_is_used(llama, additions, tmp_path, monkeypatch):
    study = Study.from_dict(
        {
            "models": llama,
            "data": {"sums": {"train": additions["train"], "test": additions["test"], "max_new_tokens": 2}},
            "methods": ["base", "lora", "loreft"],
            "seeds": 2,
            "training": {"steps": 3, "batch": 4},
            "tune": 3,
            "tune_steps": 2,
            "timing": 0,
        }
    )
    fitted, fit = [], tune.fit
    monkeypatch.setattr(tune, "fit", lambda job: fitted.append(job) or fit(job))
    runner.carry_out(study, tmp_path / "s", progress=False)
    found = {run.key[2:]: run for run in records(tmp_path / "s")}
    assert found["base", 0].trials == []
    for name in ("lora", "loreft"):
        trials = found[name, 0].trials
        assert len(trials) == 3 and found[name, 1].trials == trials
        best = min(trials, key=lambda trial: trial["value"])
        assert all(found[name, seed].settings["training"]["lr"] == best["lr"] for seed in (0, 1))
    assert len(fitted) == 6 and {job.run.training.steps for job in fitted} == {2}
    assert {job.run.training.seed for job in fitted} == {0}
    assert not list((tmp_path / "s" / "tuning").glob("**/trial-*"))


def test_trials_are_kept(llama, additions, tmp_path, monkeypatch):
    """Stopped after the second trial, a search makes only the third."""
    study = Study.from_dict(
        {
            "models": llama,
            "data": {"sums": {"train": additions["train"], "test": additions["test"], "max_new_tokens": 2}},
            "methods": ["lora"],
            "seeds": [0],
            "training": {"steps": 2, "batch": 4},
            "tune": 3,
            "timing": 0,
        }
    )
    made, fit = [], tune.fit

    def stopped(job):
        made.append(job.run.lr)
        if len(made) == 3:
            raise KeyboardInterrupt
        return fit(job)

    monkeypatch.setattr(tune, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        runner.carry_out(study, tmp_path / "s", progress=False)
    kept = json.loads(next((tmp_path / "s" / "tuning").glob("**/trials.json")).read_text())
    assert [trial["lr"] for trial in kept] == made[:2]
    runner.carry_out(study, tmp_path / "s", progress=False)
    assert len(made) == 4 and made[3] == made[2]
