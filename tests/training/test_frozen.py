"""Runs whose frozen blocks compute each row once: the same losses, resumed exactly, damage noticed, nothing left."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core.records import read_json, replace_json
from luthier.core.sites import entering
from luthier.core.storage import activations
from luthier.training import Run, Training, frozen, train
from luthier.training.checkpoint import checkpoints
from luthier.training.frozen import FOLDER
from luthier.training.prepare import prepare
from support import fresh
from support.tiny import pairs, save_model, sums, write_rows

SETTINGS = Training(epochs=3, batch=4, save_every=2, keep=30, lr=1e-2, warmup=0, eval_every=10, cache_frozen="auto")
UPPER = "layers(2) & all-linear"


def record(run: Run) -> dict:
    return read_json(run.folder / "run.json")


def adapter(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "adapter" / "adapter.safetensors")


@pytest.fixture
def run(llama, tmp_path) -> Run:
    rows = write_rows(tmp_path / "rows.jsonl", sums(40))
    return Run(llama, rows, lt.LoRA(rank=4), where=UPPER, out=str(tmp_path / "run"), training=SETTINGS)


@pytest.fixture
def entries(monkeypatch) -> list[entering.Entry]:
    """The passes of each run, without those by which it is tried."""
    found: list[entering.Entry] = []
    plain = entering.Entry.__init__

    def noted(self, below, kept, *given):
        plain(self, below, kept, *given)
        if isinstance(kept, activations.Activations):
            found.append(self)

    monkeypatch.setattr(entering.Entry, "__init__", noted)
    return found


def changed(run: Run, name: str, **settings: Any) -> Run:
    return replace(run, out=str(run.folder.parent / name), training=replace(run.training, **settings))


def forget(run: Run, after: int) -> None:
    for path in checkpoints(run.folder / "checkpoints"):
        if int(path.name[5:]) > after:
            shutil.rmtree(path)


@pytest.fixture
def left(monkeypatch) -> None:
    """What runs keep is left behind them, as by kills."""
    monkeypatch.setattr(activations.Activations, "remove", activations.Activations.close)


def test_with_the_losses_of_whole_passes(run, entries, capsys):
    own = train(run, progress=True)
    told = " ".join(capsys.readouterr().err.split())
    assert "frozen blocks 2 of 3, computed once:" in told and "float32" in told
    found = record(run)["frozen"]
    assert (found["block"], found["blocks"], found["dtype"]) == (2, 3, "float32") and found["told"]
    assert found["bytes"] == tokens(run) * 32 * 4
    ((entry,), steps) = entries, 30
    assert entry.passes == steps + 3 and entry.begun == 20 + 2  # those of two epochs, and of two evaluations
    assert not (run.folder / FOLDER).exists()
    other = changed(run, "whole", cache_frozen="off")
    whole = train(other, progress=False)
    assert len(entries) == 1 and record(other)["frozen"] == {"told": None}
    assert [loss for _, loss in own.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-5)
    assert own.eval_loss == pytest.approx(whole.eval_loss, rel=1e-5)
    assert not any("forward" in vars(m) or m._forward_hooks for m in own.model.modules())


def tokens(run: Run) -> int:
    """Those of all rows that differ."""
    prepared = prepare(run)
    return sum(map(len, {tuple(f["input_ids"]) for part in (prepared.train, prepared.evaluation) for f in part}))


@pytest.mark.parametrize("way", ["auto", "bfloat16"])
def test_resumed_at_every_moment_of_the_first_epoch(run, way, entries, left):
    """To the bit where what is kept is ahead of the checkpoint that the run goes on from; where it is gone, with the
    same losses."""
    run = replace(run, form=lt.LoRA(rank=4, dropout=0.2), training=replace(SETTINGS, cache_frozen=way))
    whole = train(run, progress=False)
    expected, losses = adapter(run), whole.losses
    for step, there in ((2, True), (4, False), (12, True)):
        forget(run, step)
        if not there:
            shutil.rmtree(run.folder / FOLDER)
        again = train(run, resume=True, progress=False)
        assert again.losses == losses
        if there:
            assert all(torch.equal(tensor, expected[key]) for key, tensor in adapter(run).items())
            assert entries[-1].begun == entries[-1].passes


def test_a_killed_run_ends_as_one_left_alone(run):
    run = replace(run, training=replace(SETTINGS, save_every=3))
    script = f"""
import json, os, signal, transformers
from luthier.training import Run, train
class Kill(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
train(Run.from_dict(json.loads({json.dumps(json.dumps(run.to_dict()))})), progress=False, callbacks=[Kill()])
"""
    file = run.folder.parent / "killed.py"
    file.write_text(script, encoding="utf-8")
    assert fresh.run(file).returncode != 0
    assert (run.folder / FOLDER / activations.NUMBERS).is_file()
    again = train(run, resume=True, progress=False)
    alone = train(replace(run, out=str(run.folder.parent / "alone")), progress=False)
    files = [folder / "adapter" / "adapter.safetensors" for folder in (run.folder, alone.folder)]
    assert files[0].read_bytes() == files[1].read_bytes() and again.losses[-1] == alone.losses[-1]
    assert not (run.folder / FOLDER).exists()


@pytest.mark.parametrize("damage", ["numbers", "sums", "about", "shorter", "missing"])
def test_damage_is_noticed_and_computed_again(run, damage, entries, left):
    whole, folder = train(run, progress=False), run.folder / FOLDER
    forget(run, 4)
    numbers = folder / activations.NUMBERS
    if damage == "numbers":
        held = bytearray(numbers.read_bytes())
        held[len(held) // 2] ^= 4
        numbers.write_bytes(held)
    elif damage == "sums":
        held = bytearray((folder / activations.SUMS).read_bytes())
        held[8] ^= 1
        (folder / activations.SUMS).write_bytes(held)
    elif damage == "about":
        (folder / activations.ABOUT).write_text("{", encoding="utf-8")
    elif damage == "shorter":
        numbers.write_bytes(numbers.read_bytes()[:-4])
    else:
        numbers.unlink()
    with pytest.warns(UserWarning, match="is damaged"):
        again = train(run, resume=True, progress=False)
    assert [loss for _, loss in again.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-5)
    single, passes = damage in ("numbers", "sums"), entries[-1].passes
    assert passes > entries[-1].begun >= (passes - 3 if single else 12)  # the last epoch and its evaluations
    forget(run, 4)
    train(run, resume=True, progress=False)  # without a warning, which would be an error here
    assert entries[-1].begun == entries[-1].passes


def test_pairs_and_their_reference(run, entries):
    source = write_rows(run.folder.parent / "pairs.jsonl", pairs(16))
    run = replace(run, data=source, objective=lt.DPO(), training=replace(SETTINGS, eval_fraction=0.0))
    own = train(run, progress=False)
    assert entries[0].begun == entries[0].passes * 2 // 3
    whole = train(changed(run, "whole", cache_frozen="off"), progress=False)
    assert [loss for _, loss in own.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-4)


REFUSED = {
    "first block": ({"where": "all-linear"}, {}),
    "seen twice": ({}, {"epochs": 1.0}),
    "neftune": ({}, {"neftune": 5.0}),
    "compiled": ({}, {"compile": True}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_is_refused_where_it_is_asked_for(run, why):
    choices, settings = REFUSED[why]
    run = replace(run, **choices, training=replace(SETTINGS, cache_frozen="on", **settings))
    with pytest.raises(lt.LuthierError, match=why):
        train(run, progress=False)
    assert not (run.folder / FOLDER).exists()
    if why != "compiled":
        train(replace(run, training=replace(run.training, cache_frozen="auto", steps=2)), progress=False)


def test_random_draws_below_are_told(run):
    """A base that draws dropout in training computes other numbers in each epoch."""
    model = save_model(run.folder.parent / "gpt2", "gpt2", embd_pdrop=0.1)
    run = replace(run, model=model, where="layers(2) & c_attn")
    train(run, progress=False)
    assert "dropout" in record(run)["frozen"]["told"] and "block" not in record(run)["frozen"]
    with pytest.raises(lt.LuthierError, match=r"cache_frozen is on.*dropout.*Leave it out"):
        train(changed(run, "asked", cache_frozen="on"), progress=False)


def test_without_room(run, monkeypatch):
    """Auto takes half of the disk, and what is asked for as much as there is."""
    monkeypatch.setattr(frozen, "room", lambda folder: 60_000)
    train(run, progress=False)
    assert "it would be" in record(run)["frozen"]["told"]
    train(changed(run, "asked", cache_frozen="on"), progress=False)
    assert record(changed(run, "asked"))["frozen"]["block"] == 2
    monkeypatch.setattr(frozen, "room", lambda folder: 20_000)
    with pytest.raises(lt.LuthierError, match="it would be"):
        train(changed(run, "more", cache_frozen="on"), progress=False)


@pytest.mark.parametrize("moment", ["begun", "later"])
def test_a_disk_that_is_full_ends_no_run(run, monkeypatch, moment, entries):
    whole = train(changed(run, "whole", cache_frozen="off"), progress=False)
    full = OSError(28, "No space left on device")

    def refuse(*_: Any) -> None:
        raise full

    if moment == "begun":
        monkeypatch.setattr(activations, "_reserve", refuse)
    else:
        plain = activations.Activations.open

        class Full:
            """A file that takes nothing."""

            def __init__(self, file: Any) -> None:
                self.seek, self.readinto, self.close, self.write = file.seek, file.readinto, file.close, refuse

        def opened(self) -> None:
            plain(self)
            numbers, sums = self._files
            self._files = Full(numbers), sums

        monkeypatch.setattr(activations.Activations, "open", opened)
    with pytest.warns(UserWarning, match="cannot be written"):
        own = train(run, progress=False)
    assert [loss for _, loss in own.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-5)
    assert not (run.folder / FOLDER).exists()


def test_a_run_of_an_older_version_goes_on_without(run, entries):
    run = changed(run, "run", cache_frozen="off")
    train(run, progress=False)
    older = {key: value for key, value in record(run).items() if key != "frozen"}
    older["run"]["training"].pop("cache_frozen")
    replace_json(run.folder / "run.json", older)
    forget(run, 4)
    train(run, resume=True, progress=False)
    assert not entries


def test_overwritten_and_withdrawn_runs_leave_nothing(run, monkeypatch):
    from luthier.training.trainer import Trainer

    def refuse(self, *given, **named):
        self.model(input_ids=torch.tensor([[1, 2, 3]]))
        raise lt.LuthierError("it is refused before its first step")

    with monkeypatch.context() as patched, pytest.raises(lt.LuthierError, match="refused"):
        patched.setattr(Trainer, "train", refuse)
        train(run, progress=False)
    assert not (run.folder / FOLDER).exists()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "train", lambda *given, **named: (_ for _ in ()).throw(KeyboardInterrupt))
        train(run, progress=False)
    assert (run.folder / FOLDER).is_dir()
    train(changed(run, "run", cache_frozen="off"), overwrite=True, progress=False)
    assert not (run.folder / FOLDER).exists()


def test_the_dry_run_says_so_before(run, capsys):
    from luthier.cli import main

    words = [
        "train",
        run.model,
        run.data,
        "--method",
        "lora",
        "--where",
        UPPER,
        "--epochs",
        "2",
        "--out",
        run.out,
        "--cache-frozen",
        "auto",
    ]
    assert main([*words, "--dry-run"]) in (0, None)
    assert "2 of 3, computed once" in " ".join(capsys.readouterr().out.split())


def test_with_an_adapter_behind_all_blocks(run, entries):
    run = replace(run, where="lm_head")
    own = train(run, progress=False)
    assert record(run)["frozen"]["block"] == 3 and entries[0].begun == 22
    whole = train(changed(run, "whole", cache_frozen="off"), progress=False)
    assert [loss for _, loss in own.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-5)


def test_a_full_disk_does_not_change_what_is_rounded(run, monkeypatch):
    """In bfloat16 a run without what it keeps would have other losses."""

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activations, "_reserve", refuse)
    with pytest.raises(lt.LuthierError, match=r"No space|no room|full"):
        train(changed(run, "run", cache_frozen="bfloat16"), progress=False)


@pytest.mark.parametrize("where", ["all-linear", UPPER])
def test_a_teacher_that_acts_below(run, where, entries):
    """An adapter of all blocks teaches one of the upper ones: its passes are its own."""
    taught = replace(changed(run, "teacher", epochs=1.0, cache_frozen="off"), where=where)
    train(taught, progress=False)
    student = replace(run, objective=lt.Distill(teacher=str(taught.folder)))
    own = train(student, progress=False)
    whole = train(changed(student, "whole", cache_frozen="off"), progress=False)
    assert [loss for _, loss in own.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-4)
    assert 0 < entries[-1].begun < entries[-1].passes


def test_noise_on_the_embeddings_is_drawn_in_each_epoch(run, entries):
    """MORepair's noise, which no setting of training knows of."""
    rows = [row | {"rationale": "by adding"} for row in sums(24)]
    noisy = replace(run, data=write_rows(run.folder.parent / "repairs.jsonl", rows), objective=lt.MORepair())
    own = train(noisy, progress=False)
    whole = train(changed(noisy, "whole", cache_frozen="off"), progress=False)
    assert [loss for _, loss in own.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-5)
