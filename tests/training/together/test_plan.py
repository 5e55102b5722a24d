"""Plans: several adapters in a file, trained at once as each would be alone."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.cli import main
from luthier.core.errors import LuthierError
from luthier.training.planfile import read_plan
from luthier.training.runfile import read_run_file
from luthier.training.together import train_at_once, train_plan
from luthier.training.together.meeting import Meeting
from luthier.training.together.request import Alone
from support.tiny import pairs, save_model, sums, write_rows

PLAN = """
model = "{model}"
data = "{rows}"
out = "{out}"
[training]
steps = 5
batch = 4
eval_every = 2
save_every = 2
eval_fraction = 0.2
[[adapter]]
name = "wide"
method = "lora"
form = {{rank = 8}}
training = {{accumulate = 2, batch = 2}}
[[adapter]]
name = "weights"
method = "dora"
where = "q_proj, up_proj"
update = {{name = "lora_plus"}}
training = {{lr = 1e-2, steps = 7, ema = 0.9, seed = 4}}
[[adapter]]
name = "edit"
method = "loreft"
training = {{schedule = "cosine", clip = 0.1}}
[[adapter]]
name = "preferred"
method = "lora"
data = "{pairs}"
objective = {{name = "dpo"}}
[[adapter]]
name = "measured"
method = "lora"
init = {{name = "pissa"}}
[[adapter]]
name = "noisy"
method = "lora"
training = {{neftune = 1.0}}
"""


@pytest.fixture
def plan(tmp_path):
    """Writes a plan, with this added, and gives its path."""
    names = {
        "model": save_model(tmp_path / "llama", "llama"),
        "rows": write_rows(tmp_path / "rows.jsonl", sums(40)),
        "pairs": write_rows(tmp_path / "pairs.jsonl", pairs(24)),
        "out": str(tmp_path / "out"),
    }

    def write(more: str = "", text: str = PLAN) -> str:
        (tmp_path / "plan.toml").write_text(text.format(**names) + more, encoding="utf-8")
        return str(tmp_path / "plan.toml")

    return write


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "adapter").glob("*.safetensors")))


def alike(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, t in one.items():
        assert float((t - two[key]).norm()) <= 1e-5 * float(t.norm()) + 1e-7, key


def test_each_adapter_is_that_of_its_own_run(plan, tmp_path):
    file = plan()
    told: list[str] = []
    runs = [each.run() for each in read_plan(file)]
    results = train_at_once(runs, say=told.append)
    assert told == ["noisy is trained by itself: noise is added to its embeddings (neftune)"]
    for run, met in zip(runs, results, strict=True):
        alone = lt.train(lt.Run.from_dict(run.to_dict() | {"out": str(tmp_path / "alone" / run.name)}), progress=False)
        assert met.folder == tmp_path / "out" / run.name and run.name == met.folder.name
        assert [loss for _, loss in met.losses] == pytest.approx([loss for _, loss in alone.losses], rel=1e-5)
        assert met.eval_loss == pytest.approx(alone.eval_loss, rel=1e-5)
        assert (met.trainable, met.total) == (alone.trainable, alone.total)
        alike(adapter(met.folder), adapter(alone.folder))
        lt.load(lt.model(run.model).model, met.adapter)


def test_the_command(plan, tmp_path, capsys):
    file = plan()
    assert main(["train", file, "--dry-run", "--json"]) == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]][:2] == ["wide", "weights"]
    assert not (tmp_path / "out").exists()
    assert main(["train", file]) == 0
    assert "6 adapters: wide, weights, edit" in capsys.readouterr().out
    assert main(["train", file]) == 2 and "wide holds a run already" in capsys.readouterr().err.replace("\n", " ")
    assert main(["train", file, "--resume"]) == 0
    assert main(["train", file, "--lr", "1e-3"]) == 2
    assert "says lr for each" in capsys.readouterr().err.replace("\n", " ")


def test_one_that_fails_leaves_the_others(plan, tmp_path):
    more = '[[adapter]]\nname = "lost"\nmethod = "lora"\ntraining = {lr = 1e30}\n'
    with pytest.raises(LuthierError, match=r"(?s)1 of 7 adapters failed.*lost: the loss became nan at step 3"):
        train_plan(plan(more))
    assert adapter(tmp_path / "out" / "edit") and not (tmp_path / "out" / "lost" / "adapter").exists()
    with pytest.raises(LuthierError, match=r"(?s)1 of 7 adapters failed.*lost"):
        train_plan(plan(more), resume=True)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('[[adapter]]\nname = "wide"\n', "two adapters are called 'wide'"),
        ('[[adapter]]\nmethod = "lora"\n', "an adapter has no name"),
        ("[[adapter]]\nname = 3\n", "the name of an adapter is 3, expected a text"),
        ('[[adapter]]\nname = "x"\nout = "y"\n', "out stands above"),
        ('[[adapter]]\nname = "x"\nform = {runk = 1}\nmethod = "lora"\n', "runk"),
    ],
)
def test_plans_that_do_not_fit(plan, more, told):
    with pytest.raises(LuthierError, match=told):
        [each.run() for each in read_plan(plan(more))]
    with pytest.raises(LuthierError, match="a plan of several adapters"):
        read_run_file(plan())
    with pytest.raises(LuthierError, match="one table or more"):
        read_plan(plan(text='model = "m"\ndata = "d"\nadapter = 3\n'))
    with pytest.raises(LuthierError, match=r"holds no \[\[adapter\]\]"):
        train_plan(plan(text='model = "m"\ndata = "d"\n'))
    with pytest.raises(LuthierError, match="out is 3, expected a text"):
        read_plan(plan(text='model = "m"\ndata = "d"\nout = 3\n[[adapter]]\nname = "a"\n'))


def test_runs_that_turn_out_to_be_alone_are_overwritten_too(plan, tmp_path):
    """The base draws random numbers, as its training finds; what lies there is of other settings."""
    head = PLAN.split("[[adapter]]")[0]
    text = head + '[[adapter]]\nname = "a"\nmethod = "lora"\n[[adapter]]\nname = "b"\nmethod = "lora"\n'
    plan(text=text)
    config = tmp_path / "llama" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.1}))
    told: list[str] = []
    for steps in (2, 3):
        runs = [each.run() for each in read_plan(plan(text=text.replace("steps = 5", f"steps = {steps}")))]
        results = train_at_once(runs, overwrite=steps == 3, say=told.append)
        assert [len(each.losses) for each in results] == [steps, steps]
    assert len(told) == 4 and all("draws random numbers" in line for line in told)


def test_what_runs_that_are_to_be_alone_held_is_gone():
    held: list[weakref.ref] = []

    def job() -> None:
        model = torch.nn.Linear(2, 2)
        held.append(weakref.ref(model))
        raise Alone("it cannot share")

    found = Meeting().hold([job, job])
    gc.collect()
    assert [type(each) for each in found] == [Alone, Alone] and [each() for each in held] == [None, None]


@pytest.mark.parametrize("error", [IndexError("list index out of range"), OSError("no space left"), KeyError("a")])
def test_whatever_stops_a_run_that_is_by_itself_is_told_at_the_end(error, tmp_path, monkeypatch):
    def broken(self, resume, overwrite):
        raise error

    monkeypatch.setattr("luthier.training.session.Session.train", broken)
    with pytest.raises(LuthierError, match=r"1 of 1 adapters failed; .*\n  default: "):
        train_at_once([lt.Run("model", "rows", lt.LoRA(), out=str(tmp_path / "run"))])
