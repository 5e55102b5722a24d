"""Cached folders: whole or not at all, checked at each use, made again when they are damaged."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.cli import main
from luthier.core import cached
from luthier.core.errors import LuthierError
from luthier.core.locks import lock
from luthier.data import objects
from luthier.models.cache import commit


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Made:
    """Builds a folder and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> dict:
        self.times += 1
        (folder / "inner").mkdir()
        (folder / "weights").write_bytes(b"12345678")
        (folder / "inner" / "config").write_text("{}")
        return {"source": "somewhere", "rows": 3, "task": "causal-lm", "most": 9}

    def model(self, scratch: Path) -> Path:
        (scratch / "model").mkdir()
        self(scratch / "model")
        return scratch / "model"


def put(how: str, made: Made) -> Path:
    """One and the same folder by either way."""
    return cached.cached("models", "it", made) if how == "cached" else commit("it", made.model)


def another_start(monkeypatch, tmp_path) -> None:
    """As if the machine had been started again."""
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(cached, "BOOT", tmp_path / "boot")


WAYS = ["cached", "commit"]


@pytest.mark.parametrize("how", WAYS)
def test_it_is_made_once(how):
    made = Made()
    assert put(how, made) == put(how, made) and made.times == 1


def other_size(file: Path) -> None:
    file.write_bytes(b"123")


def other_time_and_contents(file: Path) -> None:
    file.write_bytes(b"87654321")


def gone(file: Path) -> None:
    file.unlink()


def one_more(file: Path) -> None:
    (file.parent / "more").write_text("")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("harm", [other_size, other_time_and_contents, gone, one_more])
def test_harm_is_told_at_the_next_use_and_mended(how, harm):
    made = Made()
    folder = put(how, made)
    harm(folder / "weights")
    with pytest.warns(UserWarning, match="is damaged .* it is replaced"):
        put(how, made)
    assert made.times == 2 and (folder / "weights").read_bytes() == b"12345678" and not (folder / "more").exists()


def silent_harm(file: Path) -> None:
    """Other contents of the same size and time: what a crash may leave."""
    state = file.stat()
    file.write_bytes(b"87654321")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("how", WAYS)
def test_all_is_read_once_after_a_start_of_the_machine(how, monkeypatch, tmp_path):
    made = Made()
    folder = put(how, made)
    another_start(monkeypatch, tmp_path)
    put(how, made)
    silent_harm(folder / "weights")
    put(how, made)
    assert made.times == 1, "size and time are as they were, and it was read since"
    monkeypatch.setattr(cached, "BOOT", tmp_path / "none")
    with pytest.warns(UserWarning, match="weights has other contents"):
        put(how, made)
    assert made.times == 2


def test_a_copy_with_other_times_is_read_once_and_taken(monkeypatch):
    made = Made()
    folder = put("cached", made)
    os.utime(folder / "weights", (1, 1))
    reads = []
    plain = cached.sha256
    monkeypatch.setattr(cached, "sha256", lambda path: reads.append(path.name) or plain(path))
    put("cached", made), put("cached", made)
    assert made.times == 1 and reads == ["weights"]


def test_what_fails_leaves_nothing(root):
    def fails(folder: Path) -> dict:
        (folder / "half").write_text("")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached.cached("encoded", "it", fails)
    assert not cached.listed()


def test_a_folder_of_before_there_were_manifests_is_taken_as_it_is(root):
    folder = root / "models" / "old"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("x")
    assert commit("old", lambda _: pytest.fail("made again")) == folder
    other_size(folder / "weights")
    assert cached.damage(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3, "read": 1, "about": {}}', '{"files": {"weights": 1}}'])
def test_a_damaged_manifest_is_damage(text):
    made = Made()
    folder = put("cached", made)
    (folder / cached.MANIFEST).write_text(text)
    with pytest.warns(UserWarning, match="damaged"):
        put("cached", made)
    assert made.times == 2


def test_the_command_lists_checks_and_clears(root, capsys):
    cached.cached("encoded", "one", Made())
    folder = cached.cached("models", "two", Made())
    (root / "measured").mkdir()
    (root / "measured" / "three.safetensors").write_text("123")
    assert main(["cache"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("one", "two", "three", "3 rows of somewhere"))
    assert main(["cache", "check"]) == 0 and "2 read" in capsys.readouterr().out
    silent_harm(folder / "weights")
    assert main(["cache", "check", "encoded"]) == 0
    assert main(["cache", "check"]) == 2 and "models/two" in capsys.readouterr().err
    assert main(["cache", "clear"]) == 2 and main(["cache", "clear", "ones"]) == 2
    assert "did you mean 'one'" in capsys.readouterr().err
    assert main(["cache", "clear", "encoded", "two"]) == 0
    assert [each.name for each in cached.listed()] == ["three.safetensors"]
    assert main(["cache", "clear", "all", "--json"]) == 0 and not cached.listed()
    assert main(["cache", "list", "--json"]) == 0


def test_rows_given_in_python_are_cleared_by_name_alone(root):
    (root / "rows").mkdir(parents=True)
    (root / "rows" / "a.jsonl").write_text("{}")
    assert main(["cache", "clear", "all"]) == 0 and [each.name for each in cached.listed()] == ["a.jsonl"]
    assert main(["cache", "clear", "rows"]) == 0 and not cached.listed()


def test_what_a_killed_process_left_half_made_is_cleared_and_a_living_ones_is_not(root, capsys):
    from filelock import FileLock

    for name in (".dead.making-1", ".dead.new-0123abcd", ".alive.making-1", ".other"):
        (root / "models" / name).mkdir(parents=True)
        (root / "models" / name / "half").write_text("12345")
    (root / "models" / ".dead.lock").touch()
    with FileLock(root / "models" / ".alive.lock"):
        assert main(["cache", "clear", "models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 10
    left = {path.name for path in (root / "models").iterdir() if path.is_dir()}
    assert left == {".alive.making-1", ".other"}


def test_a_cache_that_cannot_be_written_is_told(root):
    root.write_text("a file")
    with pytest.raises(LuthierError, match="LUTHIER_CACHE"):
        cached.cached("models", "it", Made())


def test_half_made_rows_are_swept_once_they_are_old_and_nobody_writes_them(root):
    rows = root / "rows"
    rows.mkdir(parents=True)
    names = (".ab.jsonl.01234567", ".cd.new-01234567", ".ef.new-01234567", ".kept", "ab.jsonl")
    for name in names:
        (rows / name).mkdir() if ".new-" in name else (rows / name).write_text("1234")
    (rows / names[1] / "data").write_text("1234")
    assert cached.sweep(["rows"]) == 0
    for name in names:
        os.utime(rows / name, (0, time.time() - 2 * cached.OLD))
    held = lock(rows / ".ef.new-01234567")
    assert cached.sweep(["encoded"]) == 0 and cached.sweep(["rows"]) == 8
    held()
    assert sorted(path.name for path in rows.iterdir()) == sorted(names[2:])


def test_rows_for_which_there_is_no_room_are_told_where_to_go():
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LuthierError, match="set LUTHIER_CACHE to a folder with room"):
        objects._saved(SimpleNamespace(_fingerprint="f", save_to_disk=full))
