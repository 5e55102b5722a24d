"""Runs whose batches are packed: by default where the model allows it, the same losses, resumed exactly."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core.records import read_json, replace_json
from luthier.core.sites.packing import Packing
from luthier.training import Run, Training, train
from luthier.training.checkpoint import checkpoints
from support.tiny import pairs, save_model, sums, write_rows

SETTINGS = Training(steps=6, batch=4, save_every=2, keep=20, lr=1e-2, warmup=0)


def record(run: Run) -> dict:
    return read_json(run.folder / "run.json")


def adapter(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "adapter" / "adapter.safetensors")


@pytest.fixture
def run(llama, tmp_path) -> Run:
    rows = write_rows(tmp_path / "rows.jsonl", sums(40))  # of many lengths
    return Run(llama, rows, lt.LoRA(rank=4), out=str(tmp_path / "run"), training=SETTINGS)


@pytest.fixture
def seen(monkeypatch) -> list[Packing]:
    """How the batches of passes were packed."""
    found = []
    plain = Packing.__init__
    monkeypatch.setattr(Packing, "__init__", lambda self, *given: plain(self, *given) or found.append(self))
    return found


def test_by_default_with_the_losses_of_padded_batches(run, tmp_path, seen):
    own = train(run, progress=False)
    count = len(seen)
    assert count > 6 and all(packing.blocks == 3 for packing in seen)
    other = replace(run, out=str(tmp_path / "padded"), training=replace(SETTINGS, pack=False))
    padded = train(other, progress=False)
    assert record(run)["packed"] is True and record(other)["packed"] is False
    assert "as told" in record(other)["batches"]
    assert [loss for _, loss in own.losses] == pytest.approx([loss for _, loss in padded.losses], rel=1e-5)
    assert own.eval_loss == pytest.approx(padded.eval_loss, rel=1e-5)
    assert len(seen) == count
    assert own.model.config._attn_implementation == "sdpa" and not own.model._forward_hooks


def test_resumed_exactly_with_dropout_and_recomputed_blocks(run):
    form = lt.LoReFT(rank=2, dropout=0.2, positions="f2+l2")
    run = replace(run, form=form, training=replace(SETTINGS, gradient_checkpointing=True))
    whole = train(run, progress=False)
    expected, losses = adapter(run), whole.losses
    for path in checkpoints(run.folder / "checkpoints"):
        if int(path.name[5:]) > 2:
            shutil.rmtree(path)
    again = train(run, resume=True, progress=False)
    assert again.losses == losses
    assert all(torch.equal(tensor, expected[key]) for key, tensor in adapter(run).items())


def test_a_run_of_an_older_version_goes_on_padded(run):
    run = replace(run, training=replace(SETTINGS, pack=False))
    padded = train(run, progress=False).losses
    older = {key: value for key, value in record(run).items() if key not in ("packed", "batches")}
    older["run"]["training"].pop("pack")
    replace_json(run.folder / "run.json", older)
    for path in checkpoints(run.folder / "checkpoints"):
        if int(path.name[5:]) > 2:
            shutil.rmtree(path)
    run = replace(run, training=SETTINGS)
    assert train(run, resume=True, progress=False).losses == padded


def test_pairs_share_their_prompts(run, tmp_path, seen):
    """With the losses of padded batches; a run that an older version began goes on without."""
    source = write_rows(tmp_path / "pairs.jsonl", pairs(16))
    run = replace(run, data=source, objective=lt.DPO(), training=replace(SETTINGS, eval_fraction=0.0))
    own = train(run, progress=False)
    shared = [packing.shared for packing in seen if packing.shared is not None and packing.rows == 8]
    assert len(shared) >= 6 and all(each.ahead[0::2] == [0] * 4 and all(each.ahead[1::2]) for each in shared)
    assert record(run)["shared_prompts"] is True and "prompts once" in record(run)["batches"]
    other = replace(run, out=str(tmp_path / "padded"), training=replace(run.training, pack=False))
    padded = train(other, progress=False)
    assert [loss for _, loss in own.losses] == pytest.approx([loss for _, loss in padded.losses], rel=1e-4)
    replace_json(run.folder / "run.json", {k: v for k, v in record(run).items() if k != "shared_prompts"})
    for path in checkpoints(run.folder / "checkpoints"):
        shutil.rmtree(path)
    seen.clear()
    train(run, resume=True, progress=False)
    assert seen and all(packing.shared is None for packing in seen)


def test_a_model_that_cannot(run, tmp_path, capsys):
    """Padded with the reason told; asked for, it is refused."""
    run = replace(run, model=save_model(tmp_path / "bloom", "bloom"), out=str(tmp_path / "bloomed"))
    train(run, progress=True)
    told = " ".join(capsys.readouterr().err.split())
    assert record(run)["packed"] is False and "padded: its blocks do not take packed tokens" in told
    with pytest.raises(lt.LuthierError, match="BloomForCausalLM cannot: its blocks do not take"):
        train(replace(run, out=str(tmp_path / "asked"), training=replace(SETTINGS, pack=True)), progress=False)
