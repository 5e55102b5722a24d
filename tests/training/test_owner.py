"""A run folder has one owner at a time, and holds the files of one run."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest
from safetensors.torch import load_file

import luthier as lt
from luthier.core.files import OWNER
from luthier.core.owner import is_worked_in, owned
from luthier.training import Run, Training, folder, metrics, moments, train
from luthier.training.checkpoint import MANIFEST, checkpoints, newest, read
from luthier.training.rollouts import log
from support.faults import faults
from support.tiny import sums, write_rows

SHORT = Training(steps=4, batch=4, save_every=2, keep=9, lr=1e-2, eval_fraction=0)


@pytest.fixture
def run(llama, additions, tmp_path) -> Run:
    return Run(llama, additions, lt.LoRA(rank=2), where="q_proj", out=str(tmp_path / "run"), training=SHORT)


def weights(result) -> bytes:
    return (result.adapter / "adapter.safetensors").read_bytes()


def holder(path) -> tuple[int, int]:
    """(a process that owns the folder, a pipe that says when it does)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with owned(path):
            os.write(writing, b".")
            time.sleep(60)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"."
    os.close(reading)
    return pid, reading


def test_who_comes_second_is_told_who_is_there_and_a_killed_owner_is_none(run):
    train(run, progress=False)
    held = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    pid, _ = holder(run.folder)
    try:
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(lt.LuthierError, match=rf"in use: process {pid} on \S+ has been working in it since 20"):
                train(run, progress=False, **how)
        assert all(path.read_bytes() == content for path, content in held.items())
        assert is_worked_in(run.folder) and not is_worked_in(shutil.copytree(run.folder, run.folder.with_name("copy")))
        told = json.loads((run.folder / OWNER).read_text())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert (run.folder / OWNER).is_file() and not is_worked_in(run.folder)  # it could not tidy up
    started = psutil.Process().create_time() + 30  # the clock was set by as much
    set_since = told | {"pid": os.getpid(), "started": started}
    (run.folder / OWNER).write_text(json.dumps(set_since))
    assert is_worked_in(run.folder)
    other = told | {"pid": os.getpid(), "started": told["started"] - 3600}  # a number that another process got
    (run.folder / OWNER).write_text(json.dumps(other))
    assert not is_worked_in(run.folder)
    train(run, progress=False, overwrite=True)
    assert not (run.folder / OWNER).exists()


def test_a_folder_that_was_made_for_nothing_goes(run):
    with pytest.raises(lt.LuthierError, match="cannot be used"):
        train(replace(run, training=replace(SHORT, max_length=5)), progress=False)
    assert not run.folder.exists()


def test_every_file_says_whose_run_it_is(run):
    train(run, progress=False)
    record = folder.read_record(run.folder)
    assert {line["run"] for line in metrics.read(run.folder)} == {record["id"]}
    for path in checkpoints(run.folder / "checkpoints"):
        manifest = json.loads((path / MANIFEST).read_text())
        assert (manifest["run"], manifest["step"]) == (record["id"], int(path.name[5:]))
    train(run, progress=False, overwrite=True)
    assert folder.read_record(run.folder)["id"] != record["id"]


def test_a_checkpoint_of_another_run_is_not_gone_on_from(run, tmp_path):
    train(run, progress=False)
    other = replace(run, out=str(tmp_path / "other"))
    train(other, progress=False)
    shutil.rmtree(run.folder / "checkpoints")
    shutil.copytree(other.folder / "checkpoints", run.folder / "checkpoints")
    with pytest.raises(lt.LuthierError, match=r"step-4 is a checkpoint of the run [0-9a-f]{16}, and this folder holds"):
        train(run, progress=False, resume=True)


def test_lines_of_another_run_are_no_metrics_of_this_one(run):
    train(run, progress=False)
    text = (run.folder / metrics.FILE).read_text()
    (run.folder / metrics.FILE).write_text(text + json.dumps({"step": 1, "loss": 9.0, "run": "0" * 16}) + "\n")
    result = train(run, progress=False, resume=True)
    assert [step for step, _ in result.losses] == [1, 2, 3, 4] and max(loss for _, loss in result.losses) < 9


@pytest.mark.parametrize("line", [
    {"step": 1, "loss": [0]}, {"step": 1, "loss": "1"}, {"step": 1, "loss": {}}, {"step": 1, "seconds": []},
    {"step": 1, "seconds": None}, {"step": 1, "lr": 10**400}, {"step": "1"}, {"step": True}, {"loss": 1.0}, [], None,
])  # fmt: skip
def test_lines_that_hold_no_figures_are_told(line, tmp_path):
    good = json.dumps({"step": 1, "epoch": 0.5, "loss": float("nan"), "accuracy": None, "run": "a"})
    (tmp_path / metrics.FILE).write_text(f"{good}\n")
    assert metrics.read(tmp_path)[0]["run"] == "a" and metrics.seconds(metrics.read(tmp_path)) == 0.0
    (tmp_path / metrics.FILE).write_text(f"{good}\n{json.dumps(line)}\n")
    with pytest.raises(lt.LuthierError, match="line 2, is damaged"):
        metrics.read(tmp_path)


@pytest.mark.parametrize("said", ["NaN", "null"])
def test_a_loss_that_was_no_number_is_read_and_kept(said, tmp_path):
    """JSON has no number for it; earlier versions wrote Python's word."""
    (tmp_path / metrics.FILE).write_text(f'{{"step": 1, "eval_loss": {said}, "seconds": 1.0, "run": "a"}}\n')
    for _ in range(2):
        assert math.isnan(metrics.read(tmp_path)[0]["eval_loss"])
        metrics.cut(tmp_path, 1, ["a"])
    assert '"eval_loss": null' in (tmp_path / metrics.FILE).read_text()


ANSWER = {"step": 1, "run": "a", "prompt": "p", "answer": "\ud800é", "tokens": 2, "finish": "stop", "reward": None}


@pytest.mark.parametrize("change", [{"step": None}, {"prompt": 3}, {"reward": "1"}, {"run": []}, {"tokens": {}}])
def test_answers_that_are_none_are_told(change, tmp_path):
    log.append(tmp_path, [ANSWER])
    before = (tmp_path / log.FILE).read_bytes()
    log.cut(tmp_path, 1, ["a"])
    assert (tmp_path / log.FILE).read_bytes() == before and log.read(tmp_path) == [ANSWER]
    log.append(tmp_path, [ANSWER | change])
    with pytest.raises(lt.LuthierError, match=f"line 2, is damaged.*{next(iter(change))}"):
        log.table(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "no files", "one missing", "way out", "another step", "unnamed rng"])
def test_a_manifest_names_all_that_a_checkpoint_needs(run, damage):
    train(run, progress=False)
    path = run.folder / "checkpoints" / "step-4"
    manifest = json.loads((path / MANIFEST).read_text())
    if damage == "empty":
        manifest = {}
    elif damage == "no files":
        manifest["files"] = {}
    elif damage == "one missing":
        del manifest["files"]["optimizer.pt"]
    elif damage == "way out":
        manifest["files"]["../step-2/optimizer.pt"] = manifest["files"]["optimizer.pt"]
    elif damage == "another step":
        manifest["step"] = 3
    else:
        del manifest["files"]["rng_state.pth"]
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert read(path) is None
    found = newest(run.folder / "checkpoints")
    assert found is not None and found.step == 2


def test_a_name_is_not_believed_for_its_step(run):
    whole = weights(train(run, progress=False))
    root = run.folder / "checkpoints"
    shutil.rmtree(root / "step-4")
    (root / "step-2").rename(root / "step-900")
    found = newest(root)
    assert found is not None and found.step == 2
    assert weights(train(run, progress=False, resume=True)) == whole


def test_overwriting_keeps_what_is_not_ours(run):
    train(run, progress=False)
    own = [run.folder / name for name in ("notes.txt", "adapter/notes.txt", "checkpoints/notes.txt", "mine/deep.txt")]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    train(run, progress=False, overwrite=True)
    assert all(path.read_text() == "mine" for path in own)
    assert (run.folder / "adapter" / "adapter.json").is_file()


def test_what_only_tells_how_to_go_on_may_change(run):
    whole = train(run, progress=False)
    expected = weights(whole)
    shutil.rmtree(run.folder / "checkpoints" / "step-4")
    changed = replace(run, training=replace(SHORT, keep=1, save_every=1, cpu_backend="mkl"))
    assert weights(train(changed, progress=False, resume=True)) == expected
    assert [path.name for path in checkpoints(run.folder / "checkpoints")] == ["step-4"]
    resumed = folder.read_record(run.folder)["resumed"]
    assert [(each["step"], each["keep"], each["save_every"]) for each in resumed] == [(2, 1, 1)]
    train(run, progress=False, overwrite=True)
    shutil.rmtree(run.folder / "checkpoints" / "step-4")
    train(replace(run, training=replace(SHORT, save_every=1)), progress=False, resume=True)
    assert [path.name for path in checkpoints(run.folder / "checkpoints")] == ["step-4", "step-3", "step-2"]
    with pytest.raises(lt.LuthierError, match=r"training\.batch is 2, there 4"):
        train(replace(run, training=replace(SHORT, batch=2)), progress=False, resume=True)


def test_other_versions_are_told(run):
    train(run, progress=False)
    record = folder.read_record(run.folder)
    record["versions"]["torch"] = "1.0"
    (run.folder / "run.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"last ran under torch 1\.0 \(here "):
        train(run, progress=False, resume=True)


@pytest.mark.parametrize("told", [
    lambda file: {"image": file}, lambda file: {"image": {"path": file, "bytes": None}}, lambda file: {"audio": file},
    lambda file: {"images": [file]},
], ids=["picture", "picture of a data set", "sound", "pictures of a chat"])  # fmt: skip
def test_changed_pictures_and_sounds_are_noticed(told, tmp_path):
    from luthier.core.contracts.example import Example
    from luthier.data.media import media_digest

    file = tmp_path / "a"
    file.write_bytes(b"one")
    rows = [Example(row=1, **told(str(file))), Example(row=2, text="neither")]
    before = media_digest(rows)
    assert before == media_digest(rows) and media_digest(rows[1:]) is None
    file.write_bytes(b"two")
    assert media_digest(rows) != before


def test_the_first_checkpoint_comes_by_the_clock(run, monkeypatch):
    monkeypatch.setattr(moments, "FIRST", 0.0)
    train(replace(run, training=replace(SHORT, steps=30, save_every=None, keep=99)), progress=False)
    said = {path.name for path in checkpoints(run.folder / "checkpoints")}
    assert {"step-1", "step-3", "step-6"} <= said


def test_a_failed_beginning_leaves_the_old_run_or_the_new_one(run, drawn):
    """Every step of the replacement fails once; what the folder then holds is one of the two."""
    train(run, progress=False)
    (run.folder / "adapter" / "notes.txt").write_text("mine")
    names = ("adapter/adapter.json", "metrics.jsonl", "loss.png", "checkpoints/step-4/optimizer.pt")
    old = folder.read_record(run.folder)
    kept = {name: (run.folder / name).read_bytes() for name in names}
    ends = set()
    for at in range(1, 200):
        new = {**old, "id": f"{at:016x}"}
        with faults(run.folder, at) as fault, suppress(OSError, lt.LuthierError):
            folder.begin(run.folder, new)
        if not fault.what:
            break
        folder.mend(run.folder)
        is_new = folder.read_record(run.folder)["id"] == new["id"]
        ends.add(is_new)
        assert (run.folder / "adapter" / "notes.txt").read_text() == "mine", fault.what
        for name, content in kept.items():
            path = run.folder / name
            assert path.exists() != is_new and (is_new or path.read_bytes() == content), (fault.what, name)
        assert not [path for path in run.folder.iterdir() if path.name.startswith(".replaced")]
        if is_new:  # the old one is put back for the next step
            (run.folder / "run.json").write_text(json.dumps(old))
            for name, content in kept.items():
                (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (run.folder / name).write_bytes(content)
    assert ends == {True, False} and at > 8


@pytest.mark.parametrize("share", [0.1, 0.35, 0.55, 0.7, 0.85, 0.97])
def test_a_run_whose_disk_fills_goes_on_after_space_is_made(run, share, tmp_path):
    """The further steps of a run, all of them, are tried by `python -m bench reliability`."""
    with faults(tmp_path, 10**9) as fault:
        whole = weights(train(replace(run, out=str(tmp_path / "whole")), progress=False))
    told = ""
    with faults(tmp_path, int(share * fault.count)) as hit:
        try:
            train(run, progress=False)
        except lt.LuthierError as error:
            told = str(error)
    assert hit.what
    again = train(run, progress=False, resume=True)
    assert weights(again) == whole, (hit.what, told)
    assert "\n" not in told
    assert load_file(again.adapter / "adapter.safetensors")


def test_data_of_other_rows_are_still_refused(run, tmp_path):
    train(run, progress=False)
    write_rows(tmp_path / "other.jsonl", sums(40, seed=1))
    record = folder.read_record(run.folder)
    del record["data"]["media"]  # as older records
    record["run"]["data"] = str(tmp_path / "other.jsonl")
    (run.folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(lt.LuthierError, match="has changed since"):
        train(replace(run, data=str(tmp_path / "other.jsonl")), progress=False, resume=True)
