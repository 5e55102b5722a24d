"""Two processes with half a batch each train as one process does."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

import luthier as lt
from luthier.training import Run, Training, metrics, train
from support import fresh

SCRIPT = """
import json, os, sys
import torch
from luthier.training import Run, train

for run in map(Run.from_dict, json.loads(sys.argv[1])):
    train(run, progress=False)
    torch.distributed.barrier()
    if os.environ["RANK"] == "0":
        (run.folder / "adapter/adapter.safetensors").rename(run.folder.parent / f"{run.folder.name}-first")
        (run.folder / "checkpoints/step-8/optimizer.pt").unlink()
    torch.distributed.barrier()
    train(run, progress=False, resume=True)
    torch.distributed.barrier()
"""
ORDERS = ("random", "length")


@pytest.fixture(scope="module")
def runs(llama, additions, tmp_path_factory) -> dict[str, Run]:
    """A run of each order, trained in one launch and gone on with behind the last intact checkpoint."""
    folder = tmp_path_factory.mktemp("processes")
    settings = Training(steps=8, batch=4, save_every=4, eval_fraction=0.2, lr=1e-2)
    made = {
        order: Run(llama, additions, lt.LoRA(rank=4), out=str(folder / order), training=replace(settings, order=order))
        for order in ORDERS
    }
    (folder / "script.py").write_text(SCRIPT)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    asked = json.dumps([run.to_dict() for run in made.values()])
    done = fresh.run(folder / "script.py", asked, env=environment, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS)
def test_two_processes(order, runs, tmp_path):
    run = runs[order]
    one = train(replace(run, out=str(tmp_path / "one"), training=replace(run.training, batch=8)), progress=False)
    lines = metrics.read(run.folder)
    assert [x["loss"] for x in lines if "loss" in x] == pytest.approx([x for _, x in one.losses], rel=1e-4)
    assert [x["eval_loss"] for x in lines if "eval_loss" in x][-1] == pytest.approx(one.eval_loss, rel=1e-4)
    names = {path.name for path in (run.folder / "checkpoints/step-8").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "manifest.json"} <= names
    first = run.folder.parent / f"{order}-first"
    assert (run.folder / "adapter/adapter.safetensors").read_bytes() == first.read_bytes()


def test_a_rank_without_processes_is_no_launchers(llama, additions, tmp_path, monkeypatch):
    """`RANK=16 luthier train run.toml`, of a file with ${RANK}, trained and wrote nothing, without a word."""
    monkeypatch.setenv("RANK", "16")
    settings = Training(steps=1, batch=2, eval_fraction=0.0)
    done = train(Run(llama, additions, lt.LoRA(rank=2), out=str(tmp_path / "run"), training=settings), progress=False)
    assert (done.folder / "run.json").is_file() and (done.folder / "adapter" / "adapter.safetensors").is_file()
