"""What is written never takes the place of a pipe or a device: as root, `--out /dev/null` would have been a folder."""

from __future__ import annotations

import os
import stat

import pytest

from luthier.core.errors import LuthierError
from luthier.core.files import committed, free_folder, must_be_free, replace_json
from luthier.data.rewriting.journal import Journal


def in_a_folder(path):
    with committed(path) as temporary:
        (temporary / "a").write_text("x")


WRITERS = {
    "a folder": in_a_folder,
    "a new folder": must_be_free,
    "a folder of its kind": lambda path: free_folder(path, "mark", "a run"),
    "a text": lambda path: replace_json(path, {}),
    "rows": lambda path: Journal(path, {}).open(resume=False, overwrite=True),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_stays_what_it_is(writer, linked, tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    (link := tmp_path / "link").symlink_to(pipe)
    with pytest.raises(LuthierError, match=r"pipe|link"):
        WRITERS[writer](link if linked else pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (file := tmp_path / "file").write_text("kept")
    with pytest.raises(LuthierError, match="is not a folder"):
        in_a_folder(file)
    assert file.read_text() == "kept"
