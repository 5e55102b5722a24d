"""CoBa in a run: it looks at the evaluation rows, and goes on after an interruption as if there had been none."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from luthier.core.errors import LuthierError
from luthier.core.records import read_json
from luthier.methods.forms.lora import LoRA
from luthier.methods.objectives.mft import MFT
from luthier.training import Run, Training, metrics, train
from luthier.training.checkpoint import checkpoints
from support import fresh
from support.tiny import save_model, sums, write_rows

SETTINGS = Training(steps=8, batch=4, save_every=2, keep=20, lr=2e-2, eval_fraction=0.3)


@pytest.fixture
def run(tmp_path) -> Run:
    rows = [row | {"task": "ab"[i % 2]} for i, row in enumerate(sums(40))]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    objective = MFT(balance="coba", warmup=2, history=4)
    model = save_model(tmp_path / "llama", "llama")
    return Run(model, data, LoRA(rank=4), out=str(tmp_path / "run"), objective=objective, training=SETTINGS)


def memory(run: Run, step: int) -> dict:
    return read_json(run.folder / f"checkpoints/step-{step}/objective.json")


def test_its_windows_survive_an_interruption(run):
    whole = train(run, progress=False)
    held = memory(run, 8)
    assert held["looks"] == 8 and len(held["memory"]["seen"][0]) <= 4 and len(held["memory"]["worst"]) == 6
    assert sum(held["memory"]["weights"]) == pytest.approx(1)
    for path in checkpoints(run.folder / "checkpoints"):
        if int(path.name[5:]) > 4:
            (path / "manifest.json").unlink()
    again = train(run, resume=True, progress=False)
    assert again.losses == whole.losses and memory(run, 8) == held


def test_it_differs_from_even_weights(run):
    even = replace(run, objective=MFT(), out=str(run.folder.parent / "even"))
    first, second = train(run, progress=False).losses, train(even, progress=False).losses
    assert first[:2] == second[:2] and first[3:] != second[3:]


SCRIPT = """
import json, sys
from luthier.training import Run, train

train(Run.from_dict(json.loads(sys.argv[1])), progress=False)
"""


def test_two_processes_weigh_as_one(run, tmp_path):
    """Parts are summed over processes, and both look at their share of the evaluation rows."""
    plain = replace(run, form=LoRA(rank=4), training=replace(SETTINGS, steps=5, eval_fraction=0.2))
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = fresh.run(tmp_path / "script.py", json.dumps(plain.to_dict()), env=environment, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    one = replace(plain, out=str(tmp_path / "one"), training=replace(plain.training, batch=8))
    losses = [loss for _, loss in train(one, progress=False).losses]
    assert [x["loss"] for x in metrics.read(plain.folder) if "loss" in x] == pytest.approx(losses, rel=1e-4)
    ours, theirs = memory(plain, 4)["memory"]["weights"], memory(one, 4)["memory"]["weights"]
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_it_needs_evaluation_rows(run):
    with pytest.raises(LuthierError, match="goes by the evaluation loss"):
        train(replace(run, training=replace(SETTINGS, eval_fraction=0.0)), progress=False)
