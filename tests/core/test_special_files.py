"""What is written never takes the place of a pipe or a device: as root, `--out /dev/null` would have been a folder."""

from __future__ import annotations

import json
import os
import stat

import pytest

from luthier.cli.commands.evaluate import write as report
from luthier.cli.commands.select import write
from luthier.core.errors import LuthierError
from luthier.core.files import committed, free_folder, must_be_free, recover
from luthier.core.records import replace_json
from luthier.data.rewriting.journal import Journal


def in_a_folder(path):
    with committed(path) as temporary:
        (temporary / "a").write_text("x")


def rows_into(path):
    journal = Journal(path, {})
    journal.open(resume=False, overwrite=True)
    journal.add([{"a": 1}], 1, {})
    journal.close()


WRITERS = {
    "a folder": in_a_folder,
    "a new folder": must_be_free,
    "a folder of its kind": lambda path: free_folder(path, "mark", "a run"),
    "a text": lambda path: replace_json(path, {}),
    "rows": rows_into,
    "chosen rows": lambda path: write(path, [{"a": 1}]),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_stays_what_it_is(writer, linked, tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    (link := tmp_path / "link").symlink_to(pipe)
    with pytest.raises(LuthierError, match=r"pipe|link"):
        WRITERS[writer](link if linked else pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_report_goes_into_a_pipe(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        report(pipe, {"score": 1.0})
        assert json.loads(os.read(reader, 1000)) == {"score": 1.0} and stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)
    report(tmp_path / "file", {"score": 1.0})
    assert json.loads((tmp_path / "file").read_text()) == {"score": 1.0}


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (file := tmp_path / "file").write_text("kept")
    with pytest.raises(LuthierError, match="is not a folder"):
        in_a_folder(file)
    assert file.read_text() == "kept"


@pytest.mark.parametrize("writer", ["a text", "rows", "chosen rows"])
@pytest.mark.parametrize("there", [False, True])
def test_what_a_link_leads_to_is_written_and_the_link_stays(writer, there, tmp_path):
    (tmp_path / "far").mkdir()
    file = tmp_path / "far" / "file"
    if there:
        file.write_text("old")
    (link := tmp_path / "link").symlink_to(file)
    WRITERS[writer](link)
    assert link.is_symlink() and file.read_text().startswith("{")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["far", "file", "link"]


@pytest.mark.parametrize("writer", [*WRITERS, "what was there"])
def test_a_name_that_no_file_system_takes_is_said(writer, tmp_path):
    with pytest.raises(LuthierError, match="too long"):
        ({"what was there": recover} | WRITERS)[writer](tmp_path / ("x" * 300))
