"""`examine`: the command line and `lt.examine` end to end on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import luthier as lt
from luthier.core.contracts.component import names
from luthier.models import load
from support.cli_tools import save_adapter, save_bert, write_rows

READS = {"intruders": False, "forgetting": True, "similarity": True, "grafting": True}
READS |= dict.fromkeys(("circuit", "conjugate", "finetunebench", "retrieval_grid", "revival"), True)
SHORT = {
    "circuit": ["--heads", 4, "--steps", 4],
    "conjugate": ["--max-new-tokens", 4],
    "finetunebench": ["--max-new-tokens", 4],
    "retrieval_grid": ["--max-new-tokens", 4, "--passages", "passages.txt"],
    "revival": ["--steps", 2],
}
"""Settings that keep an examination short, or give it what it reads beside the rows."""


def test_every_examination_is_tried_here():
    assert sorted([*READS, "routing"]) == names("examinations")  # that of a router: tests/training/test_routing.py


@pytest.mark.parametrize("by", READS)
def test_an_adapter_is_examined(call, adapter, rows, tmp_path, by, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "passages.txt").write_text("One is two.\n\nThree is four.\n", encoding="utf-8")
    more = ["--data", rows, "--batch", 2] if READS[by] else []
    more += SHORT.get(by, [])
    done = call("examine", adapter, "--by", by, *more, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "Null:" in done.out and "holds examined.json" in done.out
    found = json.loads((tmp_path / "out" / "examined.json").read_text())
    assert found["examination"] == by and found["places"].keys() == found["null"].keys()
    assert (tmp_path / "out" / "examined.png").exists()
    if by == "intruders":  # its own, made anew
        assert call("examine", adapter, "--by", by, *more, "--out", tmp_path / "out").code == 0


def test_a_model_is_what_its_adapter_is(call, llama, adapter, rows, tmp_path):
    assert call("merge", llama, adapter, tmp_path / "model").code == 0
    given = ["--by", "forgetting", "--data", rows, "--json"]
    ours = json.loads(call("examine", adapter, *given).out)["places"]["rows"]
    theirs = json.loads(call("examine", tmp_path / "model", "--base", llama, *given).out)["places"]["rows"]
    assert ours["rise"] != 0 and theirs == pytest.approx(ours, abs=1e-4)
    itself = json.loads(call("examine", llama, "--base", llama, "--json").out)
    assert itself["effect"] == 0 and itself["summary"]["matrices"] == 21
    assert json.loads(call("examine", llama, "--base", llama, *given).out)["effect"] == 0


def test_mitigation_takes_away_what_the_examination_counts(call, llama, tmp_path):
    model = load(str(llama)).model
    torch.manual_seed(5)
    wild = save_adapter(model, lt.LoRA(rank=2, alpha=400.0), tmp_path / "wild", str(llama))
    before = json.loads(call("examine", wild, "--json").out)["effect"]
    done = call("combine", "mitigate_intruders", wild, "--scale", 0, "--out", tmp_path / "mild")
    assert done.code == 0, done.err
    assert json.loads(call("examine", tmp_path / "mild", "--json").out)["effect"] < before


def test_from_python_the_base_stays(llama, adapter, rows):
    loaded = load(str(llama))
    before = {key: tensor.clone() for key, tensor in loaded.model.state_dict().items()}
    found = lt.examine(adapter, lt.Similarity(least=0.5), base=loaded.model, processor=loaded.processor, data=str(rows))
    assert found.report.places["model.layers.0"]["similarity"] == 1.0
    now = loaded.model.state_dict()
    assert now.keys() == before.keys() and all(torch.equal(now[key], tensor) for key, tensor in before.items())


def test_a_form_on_activations_has_no_intruders_and_is_examined_otherwise(call, llama, rows, tmp_path):
    stream = save_adapter(load(str(llama)).model, lt.LoReFT(rank=2), tmp_path / "loreft", str(llama))
    done = call("examine", stream)
    assert done.code == 2 and "cannot be merged" in done.err
    assert call("examine", stream, "--by", "forgetting", "--data", rows).code == 0


def test_a_classifier_is_examined_with_its_own_order_of_classes(call, tmp_path):
    """The labels of the rows are those of the model, whatever order the file has them in."""
    base, labels = save_bert(tmp_path / "bert"), ["yes", "no", "maybe"]
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"t {i}", "label": labels[2 - i % 3]} for i in range(12)])
    torch.manual_seed(0)
    model = load(str(base), task="classification", labels=labels).model
    lt.attach(model, lt.LoRA(rank=2))
    lt.attach(model, lt.Full(), where="params(classifier.*)")
    with torch.no_grad():
        for name, parameter in lt.trainable(model).items():
            parameter.add_(0.05 * torch.randn_like(parameter)) if "classifier" not in name else parameter.zero_()
        head = {name: each for name, each in lt.trainable(model).items() if "classifier" in name and each.dim() == 1}
        next(iter(head.values()))[1] = 9.0  # every row is called "no"
    lt.save(model, tmp_path / "a", base=str(base), measured={"task": "classification", "labels": labels})
    words = ["--by", "forgetting", "--data", rows, "--json"]
    found = json.loads(call("examine", tmp_path / "a", *words).out)["places"]["rows"]
    assert found["score before"] + found["score"] == pytest.approx(1 / 3) and found["after"] == pytest.approx(
        6, abs=0.1
    )
    done = call("examine", tmp_path / "a", "--by", "similarity", "--data", rows)
    assert done.code == 0 and "could be frozen" in done.out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["{0}", "--by", "intruder"], "did you mean 'intruders'"),
        (["{0}", "--by", "forgetting"], "give data"),
        (["{0}", "--data", "{rows}"], "weights alone"),
        (["{0}", "--eps", "2"], "from 0 to 1"),
        (["{0}x"], "no adapter folder"),
        (["{llama}"], "give --base"),
        (["{0}", "--by", "grafting", "--data", "{rows}", "--batch", "64"], "two"),
    ],
)
def test_bad_words_are_refused_and_nothing_is_written(words, why, call, llama, adapter, rows, tmp_path):
    given = [word.format(adapter, llama=llama, rows=rows) for word in words]
    done = call("examine", *given, "--out", tmp_path / "no")
    assert done.code == 2 and why in done.err, done.err
    assert not (tmp_path / "no").exists()


def test_settings_follow_the_examination(call):
    own, other = call("examine", "--help").out, call("examine", "--by", "similarity", "--help").out
    assert "Settings of intruders" in own and "Settings of similarity" in other
    assert "Leading singular vectors" in own and "Leading singular vectors" not in other


def test_top_help_loads_no_torch():
    code = "import sys, luthier.cli; luthier.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
