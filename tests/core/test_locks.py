"""Locks on folders, with fcntl and, as on Windows, without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import luthier as lt
from luthier.core import locks
from support import fresh

ROOT = Path(__file__).parents[2]
BLOCKED = "import sys; sys.modules['fcntl'] = None\n"
CODE = """
import sys
from pathlib import Path
from luthier.core import locks
from luthier.core.errors import LuthierError
try:
    held = locks.lock(Path(sys.argv[1]), **eval(sys.argv[2]))
    print("held", flush=True)
    sys.stdin.read()
except LuthierError as error:
    print(error)
"""
EACH_WAY = pytest.mark.parametrize("way", ["fcntl", "file"])


def asking(folder: Path, way: str, **more) -> tuple[subprocess.Popen, str]:
    """A process that wants the lock, and what it says: `held`, until its input ends, or why not."""
    code = (BLOCKED if way == "file" else "") + CODE
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    made = subprocess.Popen([sys.executable, "-c", code, str(folder), repr(more)], **pipes)
    assert made.stdout is not None
    return made, made.stdout.readline().strip()


@EACH_WAY
def test_a_writer_keeps_others_out_until_it_ends(way, tmp_path):
    first, said = asking(tmp_path, way)
    assert said == "held"
    second, said = asking(tmp_path, way, patience=0.05)
    assert "has kept" in said and "locked for 0.05 seconds" in said
    first.communicate("")
    third, said = asking(tmp_path, way, patience=5)
    assert said == "held"
    for each in (second, third):
        each.communicate("")


def test_readers_read_at_a_time_and_keep_writers_out(tmp_path):
    other, _ = asking(tmp_path, "fcntl", shared=True)
    held = locks.lock(tmp_path, shared=True, patience=0.05)
    assert held is not None
    held()
    with pytest.raises(lt.LuthierError, match="has kept"):
        locks.lock(tmp_path, patience=0.05)
    other.communicate("")


@EACH_WAY
def test_a_folder_that_is_not_there_is_told(way, tmp_path, monkeypatch):
    if way == "file":
        monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(FileNotFoundError):
        locks.lock(tmp_path / "nowhere")


def test_adapters_are_saved_replaced_and_recovered_without_fcntl():
    chosen = "not locked and (aside or link or recover)"
    asked = ["-q", "-x", "-p", "no:cacheprovider", "tests/core/storage/test_store.py", "-k", chosen]
    done = fresh.run("-c", f"{BLOCKED}import pytest; sys.exit(pytest.main({asked!r}))", cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:]
