"""Runs whose rows stay on disk are the runs whose rows are in memory, to the last bit, also when they are resumed."""

from __future__ import annotations

import dataclasses
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core.contracts.component import find
from luthier.core.lazy import Lazy
from luthier.data import kept, large
from luthier.data.stored import Stored
from luthier.training import Run, Training, train
from luthier.training.prepare import prepare
from support.tiny import pairs, write_rows


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """Turns it on: rows are read from the file, features from the cache."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))

    def turn() -> None:
        monkeypatch.setattr(large, "LARGE", 0)
        monkeypatch.setattr(kept, "MANY", 0)

    return turn


@pytest.mark.parametrize("order", ["random", "length"])
def test_equal_and_resumed_bits(llama, additions, tmp_path, on_disk, order):
    settings = Training(epochs=1.5, batch=4, save_every=4, keep=9, eval_every=4, lr=1e-2, order=order)
    form = lt.LoRA(rank=4, dropout=0.2)
    plain = train(Run(llama, additions, form, out=str(tmp_path / "plain"), training=settings), progress=False)
    on_disk()
    run = Run(llama, additions, form, out=str(tmp_path / "disk"), training=settings)
    assert isinstance(prepare(run).train, Stored)
    held = train(run, progress=False)
    assert held.losses == plain.losses and held.eval_loss == plain.eval_loss
    for path in (tmp_path / "disk" / "checkpoints").glob("step-*"):
        if path.name != "step-4":
            shutil.rmtree(path)
    again = train(run, resume=True, progress=False)
    assert again.losses == plain.losses
    one, other = (load_file(each.adapter / "adapter.safetensors") for each in (plain, again))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name, lazy", [("simpo", Stored), ("dpo", Stored), ("kto", list)])
def test_pairs_on_disk_are_pairs_in_memory(llama, tmp_path, on_disk, name, lazy):
    path = str(write_rows(tmp_path / "pairs.jsonl", pairs(16)))
    settings = Training(epochs=1, batch=4, lr=1e-2, eval_fraction=0.25, order="length")
    run = Run(llama, path, lt.LoRA(rank=2), objective=find("objectives", name)(), training=settings)
    plain = train(dataclasses.replace(run, out=str(tmp_path / "plain")), progress=False)
    on_disk()
    run = dataclasses.replace(run, out=str(tmp_path / "disk"))
    prepared = prepare(run)
    assert isinstance(prepared.train, lazy) and isinstance(prepared.examples.rows, Lazy)
    assert [len(each) for each in prepared.plain] and not any("also" in each for each in prepared.plain)
    held = train(run, progress=False)
    assert held.losses == plain.losses and held.eval_loss == plain.eval_loss


def test_a_second_start_encodes_nothing(llama, additions, tmp_path, on_disk, monkeypatch):
    on_disk()
    run = Run(llama, additions, lt.LoRA(rank=2), out=str(tmp_path / "run"), training=Training(steps=1))
    prepare(run)
    monkeypatch.setattr(sys.modules["luthier.data.kept"], "features_of", lambda *_: pytest.fail("encoded again"))
    prepare(run)


def test_objectives_that_shape_rows_get_lists(llama, additions, tmp_path, on_disk):
    on_disk()
    run = Run(llama, additions, lt.LoRA(rank=2), out=str(tmp_path / "run"), objective=lt.objectives.ManyICL())
    assert isinstance(prepare(run).train, list)
