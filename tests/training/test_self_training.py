"""Self-training: weights of rows against finite differences, flipped labels, students, exact resume, and refusals."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import luthier as lt
from luthier.training.adam_state import AdamState
from luthier.training.self_training import SelfTraining, self_train
from luthier.training.self_training import weights as weights_
from luthier.training.self_training.run import divergences
from support.tiny import save_model, write_rows


class Network(torch.nn.Module):
    """Two layers in float64, as functions of their tensors."""

    def __init__(self, rows: int, seed: int = 0, flipped: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.tensors = {
            "w": torch.randn(3, 6, generator=draw).double() / 3,
            "v": torch.randn(6, 2, generator=draw).double(),
        }
        self.x, self.shown = (torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (rows, 24))
        self.truth = (self.x[:, 0] > 0).long()
        self.chances = functional.one_hot(self.truth, 2).double() * 0.8 + 0.1
        self.chances[:flipped] = self.chances[:flipped].flip(-1)

    def logits(self, at, x):
        return torch.tanh(x @ at["w"]) @ at["v"]

    def losses(self, at):
        return divergences(self.logits(at, self.x), self.chances)

    def labelled(self, at):
        return functional.cross_entropy(self.logits(at, self.shown), (self.shown[:, 0] > 0).long())


def test_weights_are_what_finite_differences_say():
    """-∂L(θ - η Σ ε ∇l) / ∂ε by central differences in float64, relu, normalised; any η."""
    net = Network(rows=12)
    found = weights_.row_weights(net.losses, net.labelled, net.tensors)
    slopes = [weights_.gradient(lambda at, i=i: net.losses(at)[i], net.tensors) for i in range(12)]
    for eta in (0.1, 1e-4):
        told = []
        for slope in slopes:
            ends = []
            for sign in (1, -1):
                eps = sign * 1e-5 / eta
                ends.append(float(net.labelled({key: p - eta * eps * slope[key] for key, p in net.tensors.items()})))
            told.append(-(ends[0] - ends[1]) / (2e-5 / eta))
        wanted = torch.tensor(told, dtype=torch.float64).clamp(min=0)
        assert (wanted == 0).any() and (wanted > 0).any()
        torch.testing.assert_close(found, wanted / wanted.sum(), rtol=1e-6, atol=1e-9)
    assert found.sum() == pytest.approx(1.0)


def test_row_by_row_is_the_same_and_is_taken_where_a_pass_cannot_be_run(monkeypatch):
    net = Network(rows=9, seed=3)
    whole = weights_.row_weights(net.losses, net.labelled, net.tensors)

    def broken(*given):
        raise NotImplementedError("no forward-mode rule")

    for stand_in in (broken, lambda f, at, along: (f(*at), torch.ones(9).double())):  # or one that is wrong
        monkeypatch.setattr(weights_, "jvp", stand_in)
        torch.testing.assert_close(
            weights_.row_weights(net.losses, net.labelled, net.tensors), whole, rtol=1e-10, atol=0
        )


def test_rows_that_would_not_help_have_no_weight_at_all():
    net = Network(rows=4)
    against = torch.tensor([-1.0, -2.0]).double()
    found = weights_.row_weights(lambda at: net.labelled(at) * against, net.labelled, net.tensors)
    assert torch.equal(found, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_get_less_than_half_of_the_weight(seed):
    net = Network(rows=100, seed=seed, flipped=30)
    found = weights_.row_weights(net.losses, net.labelled, net.tensors)
    assert found[:30].mean() < 0.5 * found[30:].mean()


def texts(count: int, seed: int) -> list[dict]:
    """A text's class is its first letter."""
    draw = random.Random(seed)
    return [{"text": "pn"[i % 2] + "".join(draw.choice("abcdefgh") for _ in range(6 + i % 3)), "label": "pn"[i % 2]}
            for i in range(count)]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("selftrain")
    save_model(made / "llama", "llama")
    write_rows(made / "few.jsonl", texts(8, 1))
    write_rows(made / "many.jsonl", [{"text": row["text"]} for row in texts(60, 2)])
    write_rows(made / "test.jsonl", texts(40, 3))
    return made


def spec_of(folder: Path, out: Path, **more) -> SelfTraining:
    settings = {"words": ("p=+", "n=-"), "template": "{text}=", "rounds": 2, "teacher_steps": 12, "steps": 12,
                "finetune": 4, "lr": 2e-2, "save_every": 5, **more}  # fmt: skip
    few, many, test = (str(folder / f"{name}.jsonl") for name in ("few", "many", "test"))
    return SelfTraining(str(folder / "llama"), few, many, lt.LoRA(rank=4), test, str(out), "all-linear", **settings)


def test_students_learn_what_the_teacher_says(folder, tmp_path):
    done = self_train(spec_of(folder, tmp_path / "run", teacher_steps=40, steps=40), progress=False)
    assert list(done.figures) == ["few-shot", "round 1", "round 2"] and done.figures["round 2"]["accuracy"] > 0.8
    rows = [json.loads(line) for line in (tmp_path / "run" / "round-2.jsonl").read_text().splitlines()]
    assert len(rows) == 60 and all(sum(row["chances"].values()) == pytest.approx(1, abs=1e-5) for row in rows)
    assert 0 < done.weights["round 1"]["with weight"] <= 1 and {row["label"] for row in rows} == {"p", "n"}
    assert json.loads((tmp_path / "run" / "selftrained.json").read_text())["figures"] == done.figures


def test_the_model_s_own_weights_are_those_of_single_rows(folder, tmp_path, monkeypatch):
    """The forward-mode pass through a transformer with an adapter, against one backward pass per row."""
    true, told = weights_.jvp, []

    def both(f, at, along):
        value, found = true(f, at, along)
        told.append((found.detach(), weights_._one_by_one(f, along[0], at[0])))
        return value, found

    monkeypatch.setattr(weights_, "jvp", both)
    self_train(spec_of(folder, tmp_path / "run", rounds=1, steps=2, finetune=0, teacher_steps=3), progress=False)
    assert len(told) == 2
    for found, wanted in told:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6 * float(wanted.abs().max()))


def test_without_weights_all_rows_weigh_alike(folder, tmp_path):
    done = self_train(spec_of(folder, tmp_path / "run", rounds=1, steps=4, reweigh=False), progress=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "round-1.jsonl").read_text().splitlines()]
    assert {row["weight"] for row in rows if row["weight"] is not None} == {1.0}
    assert done.weights["round 1"]["with weight"] == 1


class Killed(BaseException):
    """Instead of a signal."""


def test_a_killed_run_goes_on_exactly(folder, tmp_path, monkeypatch):
    whole = self_train(spec_of(folder, tmp_path / "whole"), progress=False)
    true, count = AdamState.step, [0]

    def dying(self):
        count[0] += 1
        if count[0] in (8, 30, 42):  # in the teacher and in both students
            raise Killed
        true(self)

    monkeypatch.setattr(AdamState, "step", dying)
    spec = spec_of(folder, tmp_path / "killed")
    for attempt in range(3):
        with pytest.raises(Killed):
            self_train(spec, resume=attempt > 0, progress=False)
    done = self_train(spec, resume=True, progress=False)
    left, right = (load_file(each.adapter / "adapter.safetensors") for each in (whole, done))
    assert all(torch.equal(left[key], right[key]) for key in left) and whole.figures == done.figures
    assert whole.weights == done.weights


def test_rows_and_words_that_do_not_serve_are_told_before_the_weights(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    for more, why in (
        ({"words": ()}, "whose first token is that of 'n'"),
        ({"words": ("p=+", "n=+")}, "whose first token is that of 'n'"),
        ({"words": ("p=+", "q=-")}, "words names the class 'q'"),
        ({"max_length": 4}, "the prompt has 8 tokens, the maximum is 4"),
    ):
        with pytest.raises(lt.LuthierError, match=why):
            self_train(spec_of(folder, tmp_path / "a", **more), progress=False)
    for more, why in (
        ({"words": ("p",)}, "expected CLASS=WORD"),
        ({"template": "It was"}, "holds {text} once"),
        ({"reweigh": False, "warmup": 0.5}, "warmup would be ignored"),
        ({"rounds": 0}, "rounds is 0"),
    ):
        with pytest.raises(lt.LuthierError, match=why):
            spec_of(folder, tmp_path / "a", **more)
    spec = spec_of(folder, tmp_path / "a")
    one = write_rows(tmp_path / "one.jsonl", [{"text": "a", "label": "p"}, {"text": "b", "label": "p"}])
    import dataclasses

    for changed, why in (({"labelled": one}, "has one class"), ({"unlabelled": spec.test}, "40 texts of")):
        with pytest.raises(lt.LuthierError, match=why):
            self_train(dataclasses.replace(spec, **changed), progress=False)


def test_selftrain_on_the_command_line(folder, tmp_path, capsys):
    from luthier.cli import main

    words = [
        "selftrain",
        str(folder / "llama"),
        "--labelled",
        str(folder / "few.jsonl"),
        "--out",
        str(tmp_path / "run"),
    ]
    words += ["--unlabelled", str(folder / "many.jsonl"), "--test", str(folder / "test.jsonl"), "--rounds", "1"]
    words += [
        "--words",
        "p=+",
        "n=-",
        "--template",
        "{text}=",
        "--teacher-steps",
        "2",
        "--steps",
        "2",
        "--finetune",
        "0",
    ]
    assert main([*words, "--recipe", "list", "--dim", "4"]) == 0
    shown = capsys.readouterr().out
    assert "few-shot" in shown and "round 1" in shown and "had a weight" in shown
    spec = json.loads((tmp_path / "run" / "selftrain.json").read_text())["selftrain"]
    assert spec["form"]["settings"]["activation"] == "identity" and spec["form"]["settings"]["dim"] == 4
    assert main([*words, "--recipe", "list", "--dim", "4", "--resume", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["figures"]) == {"few-shot", "round 1"}
    assert main([*words, "--recipe", "lora", "--overwrite"]) == 2
    assert "would ignore" in capsys.readouterr().err
