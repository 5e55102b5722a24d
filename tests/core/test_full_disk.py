"""A full disk, however it is told of: one line, what was there stays, and the work goes on when there is space."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from contextlib import suppress

import pytest
import safetensors

import luthier as lt
from luthier import cli
from luthier.core.files import committed
from luthier.core.guard import is_full
from luthier.core.owner import owned
from luthier.core.records import append_text, replace_json
from luthier.data.rewriting.journal import Journal
from support.faults import faults

TOLD = {
    "Python": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "a quota": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    "safetensors": safetensors.SafetensorError("I/O error: No space left on device (os error 28)"),
    "tokenizers": Exception("No space left on device (os error 28)"),
    "torch.save": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    "torch.save, later": RuntimeError("basic_ios::clear: iostream error"),
    "SQLite": sqlite3.OperationalError("database or disk is full"),
}  # fmt: skip
"""What was raised on a disk that was full."""
EACH = pytest.mark.parametrize("error", TOLD.values(), ids=TOLD)


@EACH
def test_what_was_there_stays_and_it_is_one_line(error, tmp_path):
    folder = tmp_path / "kept"
    with committed(folder) as new:
        (new / "file").write_text("old")
    with pytest.raises(lt.LuthierError, match=r"cannot be written .* Make space first") as told, committed(folder):
        raise error
    assert "\n" not in str(told.value) and is_full(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (folder / "file").read_text() == "old"


@EACH
def test_whoever_works_in_a_folder_tells_it(error, tmp_path):
    with pytest.raises(lt.LuthierError, match=r"Make space first.*resume"), owned(tmp_path / "run"):
        raise error


@EACH
def test_the_command_line_tells_it_wherever_it_happens(error, monkeypatch, capsys):
    def full(words) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", full)
    assert cli.main(["doctor"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("No space left on device"), lt.LuthierError("No space left"), OSError(2)])
def test_what_only_quotes_it_is_none(error):
    assert not is_full(error)


def test_a_bug_stays_one(tmp_path):
    with pytest.raises(ZeroDivisionError), owned(tmp_path / "run"), committed(tmp_path / "run" / "kept"):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()


def test_lines_are_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    file, write = tmp_path / "lines", os.write

    def half(handle: int, data) -> int:
        if len(data) < 4:
            raise TOLD["Python"]
        return write(handle, data[:-3])

    append_text(file, "first\n")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", half)
        append_text(file, "second\n")
    append_text(file, "third\n")
    assert file.read_text() == "first\nthird\n"


def test_lines_that_others_append_meanwhile_stay(tmp_path, monkeypatch):
    file, write = tmp_path / "lines", os.write

    def beside(handle: int, data) -> int:
        write(handle, data[:2])
        with file.open("ab") as other:
            other.write(b"other\n")
        raise TOLD["Python"]

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", beside)
        append_text(file, "second\n")
    assert file.read_text().endswith("other\n")


def test_what_utf_8_lacks_is_appended_as_json_has_it(tmp_path):
    row = {"text": "a \ud800 \\ ä"}
    append_text(tmp_path / "lines", json.dumps(row, ensure_ascii=False) + "\n")
    assert json.loads((tmp_path / "lines").read_text(encoding="utf-8")) == row


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_device_that_is_full_is_told():
    with pytest.raises(OSError, match="No space left"):
        append_text(os.devnull.replace("null", "full"), "line\n")


def test_a_text_whose_last_sync_fails_is_told_as_there(tmp_path):
    with pytest.raises(OSError, match="what is new is there") as told, faults(tmp_path, 5):
        replace_json(tmp_path / "state", {"a": 1})
    assert is_full(told.value) and json.loads((tmp_path / "state").read_text()) == {"a": 1}


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_rows_go_on_wherever_it_was_full_also_over_an_older_file(made, old, tmp_path):
    out = tmp_path / "rows.jsonl"

    def write(resume: bool) -> None:
        journal = Journal(out, {"seed": 1})
        journal.open(resume, overwrite=old and not resume)
        for row in range(journal.done, 2):
            journal.add([{"row": row}], 1, {})
        journal.close((lambda part, new: new.write_text(part.read_text())) if made else None)

    for at in range(1, 100):
        for path in tmp_path.iterdir():
            path.unlink()
        if old:
            out.write_text("old")
        with faults(tmp_path, at) as fault, suppress(lt.LuthierError):
            write(resume=False)
        if not fault.what:
            break
        if (tmp_path / ".rows.jsonl.state").exists():
            write(resume=True)
            assert out.read_text() == '{"row": 0}\n{"row": 1}\n', fault.what
        assert old or not out.exists() or out.read_text() == '{"row": 0}\n{"row": 1}\n', fault.what
    assert at > 15
