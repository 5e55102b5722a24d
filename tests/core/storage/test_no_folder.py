"""What is no folder is never replaced by one: a file, a pipe, a device."""

from __future__ import annotations

import os
import stat

import pytest

from luthier.core.errors import LuthierError
from luthier.core.files import committed, free_folder, must_be_free


def test_a_pipe_stays_a_pipe(tmp_path):
    """Root may rename whatever it likes: `--out /dev/null` put a folder in the place of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(LuthierError, match="name a new folder"):
        must_be_free(pipe)
    with pytest.raises(LuthierError, match="name a new folder"):
        free_folder(pipe, "run.json", "a run")
    with pytest.raises(LuthierError, match="is not a folder"), committed(pipe) as temporary:
        (temporary / "a").write_text("a")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and list(tmp_path.glob("*")) == [pipe]
