"""Unlearning: the Newton step on ridge, what each way does, exact resume, estimators and their null, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier import data, models
from luthier.core.contracts.component import find, names
from luthier.core.contracts.unlearning import Outputs, Unlearning
from luthier.training import Run, Training, train
from luthier.training.adam_state import AdamState
from luthier.training.unlearning import Unlearn, unlearn
from luthier.training.unlearning.attribution import NewtonStep, SparseProjection, changes, softmax_curvature
from luthier.training.unlearning.klom import auc, klom, klom_above_null, margins, membership
from luthier.training.unlearning.many import check_models, on_all
from support.tiny import write_rows

# --- the Newton step --------------------------------------------------------------------------------


def ridge(x, y, rho: float) -> torch.Tensor:
    return torch.linalg.solve(x.T @ x + rho * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def test_on_ridge_the_predicted_outputs_are_the_retrained_models_and_matching_them_reaches_it():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=draw, dtype=torch.float64), torch.randn(40, generator=draw, dtype=torch.float64)
    rho, stays = 0.7, slice(9, 40)
    w, wanted = ridge(x, y, rho), ridge(x[stays], y[stays], rho)
    newton = NewtonStep(6, rho)
    newton.stays(x[stays][:, None], torch.ones(31, 1, 1, dtype=torch.float64))
    for part in (slice(0, 4), slice(4, 9)):  # in batches
        newton.goes(x[part] * (x[part] @ w - y[part])[:, None])
    targets = x @ w + changes(x[:, None], newton.step())[:, 0]
    torch.testing.assert_close(targets, x @ wanted, rtol=0, atol=1e-10)
    at = w.clone()
    for _ in range(4000):  # gradient descent on the squared distance of outputs
        at -= 0.01 * x.T @ (x @ at - targets)
    torch.testing.assert_close(at, wanted, rtol=0, atol=1e-8)
    assert (w - wanted).abs().max() > 1e-2


def test_its_curvature_is_the_second_derivative_of_cross_entropy():
    logits = torch.randn(3, 4, dtype=torch.float64)
    found = softmax_curvature(logits)
    for row in range(3):
        wanted = torch.func.hessian(lambda z: torch.nn.functional.cross_entropy(z[None], torch.tensor([1])))(
            logits[row]
        )
        torch.testing.assert_close(found[row], wanted)


def test_a_projection_keeps_products_in_the_mean_and_small_gradients_whole():
    g = {"a": torch.randn(6, 30, 20), "b": torch.randn(6, 50)}
    shapes = {key: t.shape[1:] for key, t in g.items()}
    whole = SparseProjection(shapes, 650, 0)(g)
    assert whole.shape == (6, 650) and torch.equal(whole, torch.cat([t.flatten(1) for t in g.values()], 1).double())
    products = torch.stack([p @ p.T for p in (SparseProjection(shapes, 128, seed)(g) for seed in range(60))])
    error, spread = (products.mean(0) - whole @ whole.T), products.std(0) / 60**0.5
    assert (error.abs() < 5 * spread + 1e-9).all()
    assert torch.equal(SparseProjection(shapes, 128, 3)(g), SparseProjection(shapes, 128, 3)(g))
    assert not torch.equal(SparseProjection(shapes, 128, 3)(g), SparseProjection(shapes, 128, 4)(g))


# --- losses -----------------------------------------------------------------------------------------


def outputs(seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    logits, before, targets = (torch.randn(5, 3, generator=draw, dtype=torch.float64) for _ in range(3))
    return Outputs(logits, torch.tensor([0, 1, 2, 1, 0]), before, targets)


def test_the_losses_are_their_equations():
    forget, retain = outputs(0), outputs(1)
    for each in names("unlearnings"):
        cls = find("unlearnings", each, Unlearning)
        assert len(cls.equation()) > 5 and cls.paper and cls.name() == each
    log_p = [each.logits.log_softmax(-1)[range(5), each.labels] for each in (forget, retain)]
    ascent = lt.unlearnings.Ascent(beta=0.3).loss(forget, retain)
    torch.testing.assert_close(ascent, log_p[0].mean() - 0.3 * log_p[1].mean())
    p, q = retain.before.softmax(-1), retain.logits.softmax(-1)
    kl = lt.unlearnings.KL(beta=2.0).loss(forget, retain)
    torch.testing.assert_close(kl, log_p[0].mean() + 2 * (p * (p / q).log()).sum(-1).mean())
    dmm = lt.unlearnings.DMM().loss(forget, retain)
    both = torch.cat([(each.logits - each.targets).square().mean(-1) for each in (forget, retain)])
    torch.testing.assert_close(dmm, both.mean())


# --- estimators -------------------------------------------------------------------------------------


def test_klom_of_equal_distributions_is_biased_and_less_its_null_is_not():
    draw = np.random.default_rng(0)
    same = [draw.normal(size=(100, 60)) for _ in range(3)]
    found = klom_above_null(same[0], same[1], same[2])
    assert found["klom"] > 0.1  # the bias of the public estimator
    assert found["low"] < 0 < found["high"] and abs(found["above null"]) < 0.05
    apart = klom_above_null(same[0] + 1.5, same[1], same[2])
    assert apart["low"] > 0.3 and (klom(same[0], same[0]) == 0).all()


def test_the_interval_of_klom_is_the_jackknifes_over_models():
    from luthier.core.numerics import student

    left, right, other = np.random.default_rng(1).normal(size=(3, 4, 7))

    def gap(kept: list[int]) -> float:
        return float((klom(left[kept], right[kept]) - klom(other[kept], right[kept])).mean())

    without = np.array([gap([i for i in range(4) if i != one]) for one in range(4)])
    error = np.sqrt(3 / 4 * np.square(without - without.mean()).sum())
    found = klom_above_null(left, right, other)
    assert found["above null"] == pytest.approx(gap([0, 1, 2, 3]))
    assert found["high"] - found["low"] == pytest.approx(2 * student.quantile(0.95, 3) * error)
    with pytest.raises(lt.LuthierError, match="2, 2, 2 models; expected as many of each, and at least 3"):
        klom_above_null(left[:2], right[:2], other[:2])


def test_a_margin_is_the_logit_less_the_log_sum_of_the_others():
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    others = logits.masked_fill(torch.nn.functional.one_hot(labels, 4).bool(), -torch.inf).logsumexp(-1)
    np.testing.assert_allclose(margins(losses.numpy()), (logits[range(6), labels] - others).numpy(), rtol=1e-10)
    assert np.isfinite(margins(np.zeros(2))).all()


def test_membership_is_the_probability_of_a_lower_loss():
    draw = np.random.default_rng(0)
    members, others = draw.normal(size=50), draw.normal(0.8, size=70)
    wanted = np.mean([(m < o) + 0.5 * (m == o) for m in members for o in others])
    assert auc(members, others) == pytest.approx(wanted)
    assert auc(np.ones(3), np.ones(4)) == 0.5
    found = membership(members, draw.normal(size=400))
    assert found["low"] < 0.5 < found["high"]


def test_what_a_run_held_out_or_never_reached_was_not_learned(bert, tmp_path):
    from luthier.training.unlearning.rows import learned

    source = write_rows(tmp_path / "rows.jsonl", [{"text": f"{i}", "label": "ab"[i % 2]} for i in range(12)])
    run = Run(bert, source, lt.LoRA(rank=2), training=Training(eval_fraction=0.25))
    assert len(learned(run)) == 9 and len(learned(replace(run, limit=8))) == 6
    assert len(learned(replace(run, eval_data=source))) == 12


# --- on a model -------------------------------------------------------------------------------------

TRAINING = Training(epochs=12, batch=4, lr=1e-2, eval_fraction=0.0, save_every=1000, schedule="constant", warmup=0.0)


@pytest.fixture(scope="module")
def trained(bert, tmp_path_factory):
    """(run folder, rows to forget, rows to retain, new rows): some labels are wrong, and only learning them tells."""
    folder = tmp_path_factory.mktemp("unlearn")
    draw = np.random.default_rng(0)

    def rows(count: int, wrong: bool) -> list[dict]:
        found = []
        for i in range(count):
            letter = "ab"[i % 2]
            label = "ab"[(i + wrong) % 2]
            found.append({"text": "".join(draw.choice(list("stuvwxyz"), 5)) + letter * 2, "label": label})
        return found

    forget, retain, new = rows(6, True), rows(18, False), rows(12, True)
    parts = {"all": forget + retain, "forget": forget, "retain": retain, "new": new}
    files = [write_rows(folder / f"{name}.jsonl", part) for name, part in parts.items()]
    done = train(Run(bert, files[0], lt.LoRA(rank=4), out=str(folder / "run"), training=TRAINING), progress=False)
    return str(done.folder), *files[1:]


@pytest.fixture(scope="module")
def brief(trained, tmp_path_factory):
    """The same rows, learned in so few steps that many models can be trained anew."""
    run = Run.from_dict(json.loads((Path(trained[0]) / "run.json").read_text())["run"])
    out = str(tmp_path_factory.mktemp("brief") / "run")
    train(replace(run, out=out, training=replace(TRAINING, epochs=3)), progress=False)
    return out, *trained[1:]


def spec_of(trained, out: Path, by: str, settings: dict | None = None, **more) -> Unlearn:
    run, forget, retain, new = trained
    method = find("unlearnings", by, Unlearning).from_dict(settings or {})
    spec = Unlearn(run, forget, retain, method, out=str(out), test=new, steps=20, lr=1e-2, batch=6)
    return replace(spec, **more)


@pytest.mark.parametrize("by", names("unlearnings"))
def test_each_way_is_measured_before_and_after_and_ascent_raises_the_loss(trained, tmp_path, by):
    done = unlearn(spec_of(trained, tmp_path / "run", by, steps=12), progress=False)
    figures = done.figures
    raised = {n: figures[f"{n} loss"]["after"] - figures[f"{n} loss"]["before"] for n in ("forget", "retain")}
    assert all(np.isfinite(list(each.values())).all() for each in figures.values())
    assert 0 <= figures["membership AUC"]["after"] <= 1
    if by == "ascent":
        assert raised["forget"] > 0.1  # whether more than of the rows that stay depends on the processor's rounding
    assert json.loads((tmp_path / "run" / "unlearned.json").read_text())["figures"] == figures
    again = lt.load(models.load(trained_model(trained), task="classification", labels=["a", "b"]).model, done.adapter)
    assert lt.trainable(again).keys() == lt.trainable(done.model).keys()


def test_a_prediction_that_no_training_reaches_is_told(trained, tmp_path, capsys):
    for name, damping, told in (("a", 1e-9, True), ("b", 1e3, False)):
        unlearn(spec_of(trained, tmp_path / name, "dmm", {"damping": damping}, steps=1), progress=True)
        assert ("raise damping" in capsys.readouterr().err) is told


@pytest.mark.long
def test_klom_above_null_of_retrained_models_is_nothing_within_its_interval(brief, tmp_path):
    """The oracle against itself, by other seeds; and a run that goes on measures no model twice."""
    spec = spec_of(brief, tmp_path / "run", "retrain", models=4)
    done = unlearn(spec, progress=False)
    for name in ("forget", "retain", "test"):
        told = done.figures[f"{name} KLOM above null"]
        assert told["low"] <= 0 <= told["high"] and told["low"] < told["after"] < told["high"]
    assert len(list((tmp_path / "run" / "models").glob("*-*.json"))) == 16
    assert unlearn(spec, resume=True, progress=False).figures == done.figures


@pytest.mark.long
def test_klom_of_an_unlearning_is_of_models_of_other_seeds(brief, tmp_path):
    done = unlearn(spec_of(brief, tmp_path / "run", "ascent", models=3, steps=12), progress=False)
    told = done.figures["forget KLOM above null"]
    assert told["count"] == 6 and np.isfinite([told["before"], told["after"], told["low"], told["high"]]).all()
    noted = tmp_path / "run" / "models"
    assert json.loads((noted / "unlearned-0.json").read_text()) != json.loads((noted / "unlearned-1.json").read_text())
    with pytest.raises(lt.LuthierError, match="models is 2; expected 0"):
        spec_of(brief, tmp_path / "run", "ascent", models=2)


def trained_model(trained) -> str:
    return json.loads((Path(trained[0]) / "run.json").read_text())["run"]["model"]


class Killed(BaseException):
    """Instead of a signal."""


@pytest.mark.parametrize("by", ["dmm", "kl"])
def test_a_killed_unlearning_goes_on_exactly(trained, tmp_path, monkeypatch, by):
    whole = unlearn(spec_of(trained, tmp_path / "whole", by, steps=8, save_every=3), progress=False)
    true, count = AdamState.step, [0]

    def dying(self):
        count[0] += 1
        if count[0] == 6:
            raise Killed
        true(self)

    monkeypatch.setattr(AdamState, "step", dying)
    spec = spec_of(trained, tmp_path / "killed", by, steps=8, save_every=3)
    with pytest.raises(Killed):
        unlearn(spec, progress=False)
    done = unlearn(spec, resume=True, progress=False)
    left, right = (load_file(each.adapter / "adapter.safetensors") for each in (whole, done))
    assert count[0] > 6 and all(torch.equal(left[key], right[key]) for key in left)
    assert whole.figures == done.figures
    with pytest.raises(lt.LuthierError, match="holds another unlearning"):
        unlearn(replace(spec, seed=5), resume=True, progress=False)


def test_bad_rows_are_told_before_the_weights(trained, llama, additions, tmp_path, monkeypatch):
    _, forget, retain, new = trained
    language = train(
        Run(llama, additions, lt.LoRA(rank=2), out=str(tmp_path / "lm"), training=Training(steps=1, eval_fraction=0)),
        progress=False,
    ).folder
    monkeypatch.setattr("luthier.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    spec = spec_of(trained, tmp_path / "run", "ascent")
    told = [json.loads(line) for line in Path(forget).read_text().splitlines()]
    told[1]["label"] = {"a": "b", "b": "a"}[told[1]["label"]]
    other = write_rows(tmp_path / "other.jsonl", told)
    cases = [
        ({"forget": new, "test": None}, "12 of 12 rows of .* are not in .*cannot be forgotten"),
        ({"forget": other, "test": None}, "1 of 6 rows of .*row 2 first, which has another answer there"),
        ({"retain": new, "test": None}, "12 of 12 rows of .* are not in .*nothing to retain"),
        ({"retain": forget}, "6 rows are in .* and in"),
        ({"test": retain}, "which were learned"),
        ({"adapter": str(tmp_path)}, "is not a run of luthier train"),
    ]
    for changes_, said in cases:
        with pytest.raises(lt.LuthierError, match=said):
            unlearn(replace(spec, **changes_), progress=False)
    one = [row for row in map(json.loads, Path(retain).read_text().splitlines()) if row["label"] == "a"]
    lone = write_rows(tmp_path / "one.jsonl", one)
    for by, more in (("retrain", {}), ("ascent", {"models": 3})):
        with pytest.raises(lt.LuthierError, match="has no row of b, so a model that is trained on it alone"):
            unlearn(spec_of((trained[0], forget, lone, new), tmp_path / "run", by, **more), progress=False)
    asked = spec_of((str(language), additions, additions, None), tmp_path / "run", "dmm")
    rows = [json.loads(line) for line in Path(additions).read_text().splitlines()]
    parts = [write_rows(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((rows[:5], rows[5:]))]
    with pytest.raises(lt.LuthierError, match="it is for classifiers"):
        unlearn(replace(asked, forget=parts[0], retain=parts[1]), progress=False)
    assert not (tmp_path / "run").exists()


def test_models_of_other_seeds_are_trained_on_the_same_rows(trained, tmp_path):
    """A share held out, or a limit, would be other rows with each seed."""
    run = Run.from_dict(json.loads((Path(trained[0]) / "run.json").read_text())["run"])
    held = replace(run, training=replace(TRAINING, eval_fraction=0.3, best="loss"))
    again = on_all(held, "other.jsonl", tmp_path / "again")
    assert (again.training.eval_fraction, again.training.best, again.limit) == (0.0, None, None)
    assert on_all(replace(held, eval_data="more.jsonl"), "x", tmp_path).training.best == "loss"
    with pytest.raises(lt.LuthierError, match=r"its rows \(limit 38\), so they would know others"):
        check_models(spec_of(trained, tmp_path / "x", "retrain", models=3), replace(run, limit=38), None, None)
    with pytest.raises(lt.LuthierError, match=r"12 rows of .* all of which models are trained on"):
        new = data.load(trained[3], task="classification")
        check_models(spec_of(trained, tmp_path / "x", "retrain", models=3), run, new, new)
