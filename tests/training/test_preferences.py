"""Runs over preferences: the reference is computed once, figures are written and drawn, a reward model is a model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.cli.commands.train import Train
from luthier.cli.parse import parse
from luthier.core.storage import store
from luthier.data import large
from luthier.evaluating import evaluate
from luthier.training import Run, Training, metrics, train
from luthier.training.objective import objective_for
from luthier.training.runfile import read_run_file
from support import drawing
from support.tiny import TEMPLATE, pairs, save_model, sums, write_rows

SETTINGS = Training(epochs=12, batch=4, lr=2e-2, eval_fraction=0.2, save_every=1000)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("preferences")
    return Run(
        save_model(folder / "llama", "llama", TEMPLATE),
        write_rows(folder / "pairs.jsonl", pairs(20)),
        lt.LoRA(rank=4),
        out=str(folder / "dpo"),
        objective=lt.DPO(),
        training=SETTINGS,
    )


@pytest.fixture(scope="module")
def dpo(run):
    with drawing.drawn():
        return train(run, progress=False)


def test_a_preference_is_learned_and_told(run, dpo):
    lines = metrics.read(dpo.folder)
    last, held = ([line for line in lines if key in line][-1] for key in ("loss", "eval_loss"))
    assert last["accuracy"] == 1.0 and last["margin"] > 0.5
    assert last["margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], abs=1e-6)
    assert held["eval_accuracy"] == 1.0 and held["eval_tokens_rejected"] > held["eval_tokens_chosen"] > 1
    first = lines[0]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4) and first["margin"] == pytest.approx(0, abs=1e-4)
    assert (dpo.folder / "loss.png").stat().st_size > 10_000


def test_the_reference_is_computed_once(run, dpo, monkeypatch):
    """Before the first step, and not again: neither by a step nor by another run on the same rows."""
    from luthier.methods.objectives import dpo as module
    from luthier.training import reference

    def never(*args):
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(reference, "computed", never)
    again = train(replace(run, out=f"{run.out}-again"), progress=False)
    assert again.losses == dpo.losses
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(module, "against", lambda model, batch, named: seen.append("reference" in batch) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(replace(run, out=f"{run.out}-seen"), progress=False)
    assert seen == [True]


def test_less_than_a_pass_leaves_the_reference_to_the_steps(run, monkeypatch):
    from luthier.training import reference

    short = replace(run.training, steps=3, epochs=1.0)
    monkeypatch.setattr(reference, "computed", lambda *args: 1 / 0)
    step = train(replace(run, training=short, out=f"{run.out}-steps"), progress=False)
    monkeypatch.undo()
    whole = train(replace(run, training=replace(short, steps=4), out=f"{run.out}-whole"), progress=False)
    assert step.losses[0][1] == pytest.approx(whole.losses[0][1], abs=1e-6)


def test_an_adapter_is_the_reference(run, dpo):
    """A model that starts as its reference is at log 2; from the base, it is elsewhere."""
    chosen = lt.DPO(reference=str(dpo.folder), beta=1.0)
    far = train(replace(run, objective=chosen, out=f"{run.out}-from"), progress=False)
    assert far.losses[0][1] > 2.0 and far.losses[-1][1] < far.losses[0][1]
    with pytest.raises(lt.LuthierError, match="nowhere"):
        train(replace(run, objective=lt.DPO(reference="nowhere"), out=f"{run.out}-none"), progress=False)


@pytest.mark.parametrize("form", [lt.Full(), lt.LoReFT(rank=2, positions="f1+l1")], ids=["full", "loreft"])
def test_any_form_is_a_policy(run, form):
    """Full fine-tuning as well: the reference is known before the first step."""
    settings = replace(SETTINGS, lr=5e-3, epochs=8)
    found = train(replace(run, form=form, training=settings, out=f"{run.out}-{form.name()}"), progress=False)
    assert found.losses[0][1] == pytest.approx(0.6931, abs=1e-4) and found.losses[-1][1] < 0.6


def test_pairs_are_evaluated(run, dpo):
    examples = data.load(run.data, preferences=True)
    found = evaluate(dpo.model, dpo.processor, examples)
    assert next(iter(found.metrics)) == "accuracy" and found.score == 1.0 and found.count == 20
    assert found.metrics["margin"] > 5 and found.loss is None
    line = found.predictions[0]
    assert line["chosen"]["reward"] - line["rejected"]["reward"] > 0 and line["score"] == 1.0
    base = models.load(run.model)
    plain = evaluate(base.model, base.processor, examples)
    assert next(iter(plain.metrics)) == "likelier" and "accuracy" not in plain.metrics
    alone = evaluate(base.model, base.processor, examples, batch=1)
    assert [each["chosen"]["log_prob"] for each in alone.predictions] == pytest.approx(
        [each["chosen"]["log_prob"] for each in plain.predictions], rel=1e-5
    )


def test_a_reward_model_is_evaluated_and_loaded(run):
    result = train(replace(run, objective=lt.Reward(), out=f"{run.out}-reward"), progress=False)
    assert result.losses[0][1] == pytest.approx(0.69, abs=0.3) and result.losses[-1][1] < 0.1
    examples = data.load(run.data, preferences=True, task="reward")
    found = evaluate(result.model, result.processor, examples)
    assert found.score == 1.0 and found.metrics["margin"] > 1
    loaded = models.load(run.model, task="reward")
    store.load(loaded.model, result.adapter)
    assert evaluate(loaded.model, loaded.processor, examples).metrics == pytest.approx(found.metrics, rel=1e-5)


def test_margins_of_rows_are_to_be_won(run, tmp_path):
    rows = [row | {"margin": 2.0} for row in pairs(20)]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    short = replace(SETTINGS, epochs=1.0)
    losses = [
        train(replace(run, data=each, objective=lt.Reward(), training=short, out=str(tmp_path / name)), progress=False)
        for name, each in (("with", source), ("without", run.data))
    ]
    assert losses[0].losses[0][1] > losses[1].losses[0][1] + 0.5


def test_judged_answers_are_told_apart(run, tmp_path):
    rows = [row | {"label": True} for row in sums(16)] + [
        row | {"completion": "no", "label": False} for row in sums(16)
    ]
    source = write_rows(tmp_path / "judged.jsonl", rows)
    assert objective_for(source) == lt.SFT() and objective_for(run.data) == lt.DPO()
    settings = replace(SETTINGS, batch=8)
    result = train(
        replace(run, data=source, objective=lt.KTO(), training=settings, out=str(tmp_path / "kto")), progress=False
    )
    last = [line for line in metrics.read(result.folder) if "loss" in line][-1]
    assert last["loss"] < 0.4 and last["accuracy"] > 0.9 and last["kl"] >= 0 and last["tokens"] > 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_rows_of_the_evaluations_may_be_of_one_kind(run, tmp_path, seed):
    """One row of twenty is held out, wanted or not; rows to train on have to be of both kinds."""
    rows = [row | {"label": i % 2 == 0} for i, row in enumerate(sums(20))]
    source = write_rows(tmp_path / "judged.jsonl", rows)
    settings = replace(SETTINGS, epochs=1.0, steps=1, eval_fraction=0.05, seed=seed)
    judged = replace(run, data=source, objective=lt.KTO(), training=settings, out=str(tmp_path / "kto"))
    assert train(judged, progress=False).eval_loss is not None
    bad = write_rows(tmp_path / "bad.jsonl", [row | {"label": False} for row in sums(20)])
    with pytest.raises(lt.LuthierError, match=r"all 19 answers of .* are unwanted"):
        train(replace(judged, data=bad, out=str(tmp_path / "bad")), progress=False)


@pytest.mark.parametrize("labels", [[True], [0, 1, 2]])
def test_labels_that_judge_nothing_are_told(run, tmp_path, labels):
    rows = [row | {"label": labels[i % len(labels)]} for i, row in enumerate(sums(6))]
    source = write_rows(tmp_path / "alike.jsonl", rows)
    with pytest.raises(lt.LuthierError, match=r"The column 'label' judges answers where .* some are false"):
        train(replace(run, data=source, objective=lt.KTO(), out=str(tmp_path / "kto")), progress=False)


def test_the_default_objective_is_that_of_the_rows(run, tmp_path):
    found = train(model=run.model, data=run.data, form=run.form, training=replace(SETTINGS, steps=1, epochs=1.0),
                  out=str(tmp_path / "run"), progress=False)  # fmt: skip
    record = json.loads((found.folder / "run.json").read_text())
    assert record["run"]["objective"]["name"] == "dpo" and "--objective dpo" in record["command"]


def test_the_reference_stays_bit_equal(run, dpo):
    base = models.load(run.model).model.state_dict()
    with lt.disabled(dpo.model):
        ids = torch.tensor([[5, 6, 7]])
        again = models.load(run.model).model
        assert torch.equal(dpo.model(input_ids=ids).logits, again(input_ids=ids).logits) and base


KINDS = {
    "sft": [{"prompt": "q", "completion": "a"}],
    "dpo": [{"prompt": "q", "chosen": "a", "rejected": "b"}],
    "judged": [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": False}],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("large_files", [False, True])
def test_rows_choose_where_nothing_is_stated(kind, large_files, tmp_path, monkeypatch):
    """Flags, run files and recipes without an objective; what states one is not overruled."""
    if large_files:
        monkeypatch.setattr(large, "LARGE", 0)
    name = "dpo" if kind == "dpo" else "sft"  # which refuses answers that are judged bad
    rows, other = (str(write_rows(tmp_path / f"{each}.jsonl", KINDS[each])) for each in (kind, "sft"))
    file = tmp_path / "run.toml"
    file.write_text(f'model = "m"\ndata = "{rows}"\nmethod = "lora"\n')
    assert read_run_file(file).run().objective.name() == name
    for words in ([file], [file, "--lr", "1e-3"], ["m", rows], ["m", rows, "--recipe", "lora"]):
        assert resolved(*words).objective.name() == name
    assert resolved(file, other).objective.name() == "sft"
    assert resolved(file, "--objective", "orpo").objective.name() == "orpo"
    file.write_text(f'model = "m"\ndata = "{rows}"\nmethod = "lora"\n[objective]\nname = "simpo"\n')
    assert read_run_file(file).run().objective.name() == resolved(file).objective.name() == "simpo"


def test_rows_choose_for_lt_train(run, tmp_path, capsys):
    """Rows in memory, and a run file whose data are others."""
    short = {"steps": 1, "batch": 2, "eval_fraction": 0.0}
    lt.train(run.model, pairs(4), method="lora", out=str(tmp_path / "memory"), **short)
    assert "no objective: dpo, which the rows call for" in capsys.readouterr().err
    path = write_rows(tmp_path / "pairs.jsonl", pairs(4))
    (tmp_path / "run.toml").write_text(f'model = "{run.model}"\ndata = "nowhere.jsonl"\nmethod = "lora"\n')
    lt.train(tmp_path / "run.toml", str(path), out=str(tmp_path / "file"), progress=False, **short)
    for name in ("memory", "file"):
        assert json.loads((tmp_path / name / "run.json").read_text())["run"]["objective"]["name"] == "dpo"
    with pytest.raises(lt.LuthierError, match="preference data"):
        lt.train(run.model, str(path), method="lora", objective="sft", out=str(tmp_path / "sft"), progress=False)


def resolved(*words) -> Run:
    parsed = parse(["train", *map(str, words)])
    assert parsed is not None and isinstance(parsed[0], Train)
    return parsed[0].resolved(parsed[1])
