"""Trainings that read rows of their own name what nothing reads before they begin, as `luthier train` does."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import pytest

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.data.sources import read
from luthier.training.editing import facts
from support.tiny_tokenizers import make

ROWS = {
    "asked": [{"prompt": f"q{i}", "completion": "a", "origin": "web"} for i in range(3)],
    "texts": [{"text": f"t{i}", "origin": "web"} for i in range(3)],
    "labelled": [{"text": f"u{i}", "label": "xy"[i % 2], "origin": "web"} for i in range(4)],
    "facts": [{"prompt": "fact a is", "target": "7", "rephrased": "now a is", "origin": "web", "note": ""}],
}


@pytest.fixture
def files(tmp_path):
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ROWS}


@pytest.fixture
def begun(monkeypatch, capsys):
    """`begun(module, function, spec)`: what is said before the folder of a training is taken."""

    def stop(*_):
        raise LuthierError("taken")

    def run(name, function, spec):
        module = importlib.import_module(f"luthier.training.{name}.run")
        monkeypatch.setattr(module, "claimed", stop)
        if name != "editing":
            monkeypatch.setattr(models, "processor_of", lambda *_: make("chatml"))
        with pytest.raises(LuthierError, match="taken"):
            getattr(module, function)(spec)
        return capsys.readouterr().err

    return run


def test_a_meta_training_names_what_nothing_reads(begun, files):
    meta = SimpleNamespace(rows="conversations")
    spec = SimpleNamespace(
        meta=meta,
        model="m",
        domains=(files["asked"],),
        tests=(files["asked"],),
        seed=0,
        shots=1,
        max_length=64,
        out="o",
    )
    assert begun("meta", "meta_learn", spec).count(f"not read: origin of {files['asked']}") == 2


def test_a_self_training_names_what_nothing_reads(begun, files, monkeypatch):
    rows = {name: data.load(files[name], task=task) for name, task in (("labelled", None), ("texts", "causal-lm"))}
    module = importlib.import_module("luthier.training.self_training.run")
    read = SimpleNamespace(labelled=rows["labelled"], unlabelled=rows["texts"], test=None)
    monkeypatch.setattr(module, "read_rows", lambda *_: read)
    said = begun("self_training", "self_train", SimpleNamespace(model="m", out="o"))
    assert f"not read: origin of {files['labelled']}" in said and f"not read: origin of {files['texts']}" in said


def test_an_unlearning_names_what_nothing_reads(begun, files, monkeypatch):
    module = importlib.import_module("luthier.training.unlearning.run")
    rows = data.load(files["asked"])
    monkeypatch.setattr(module, "trained_run", lambda spec: SimpleNamespace(model="m"))
    read = SimpleNamespace(forget=rows, retain=rows, test=None, task="causal-lm", processor=make("chatml"))
    monkeypatch.setattr(module, "read_rows", lambda *_: read)
    assert "not read: origin of" in begun("unlearning", "unlearn", SimpleNamespace(out="o"))


def test_an_edit_names_what_nothing_reads(begun, files):
    spec = SimpleNamespace(facts=files["facts"], limit=None, held=None, out="o")
    assert begun("editing", "edit", spec).strip() == f"not read: origin of {files['facts']}"


def test_a_second_target_is_named_and_rows_are_read_once(tmp_path, monkeypatch):
    rows = [{"prompt": "fact a is", "target": "7", "answer": "8"}, {"prompt": "fact b is", "completion": "9"}]
    (file := tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = []
    monkeypatch.setattr(facts, "read", lambda source: asked.append(source) or read(source))
    found, names = facts.read_whole(str(file))
    assert [fact.target for fact in found] == ["7", "9"] and names == ["answer"] and len(asked) == 1
