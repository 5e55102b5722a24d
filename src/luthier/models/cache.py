"""The model cache: a folder appears in it whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from luthier.core.cached import ELSEWHERE, ready, seal
from luthier.core.errors import LuthierError
from luthier.core.files import cache_root, discard
from luthier.core.guard import on_disk


def models_folder() -> Path:
    """Returns where converted models lie: `$LUTHIER_CACHE/models`, by default `~/.cache/luthier/models`."""
    return cache_root() / "models"


def commit(name: str, build: Callable[[Path], Path]) -> Path:
    """Returns the cached folder `name`, made first if need be.

    `build(scratch)` returns the finished folder inside `scratch`, which is then renamed into place,
    so a process killed while building leaves no model behind. Processes that want the same name
    wait for one another. A damaged folder is replaced (see `core.cached`).
    """
    from filelock import FileLock

    folder = models_folder() / name
    if ready(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LuthierError(
            f"cannot write the model cache {folder.parent}: {error.strerror}. "
            "Set LUTHIER_CACHE to a folder that can be written."
        ) from None
    with on_disk(str(folder), ELSEWHERE), FileLock(folder.parent / f".{name}.lock"):
        if ready(folder, quiet=True):
            return folder
        discard(folder)  # what is damaged
        for leftover in folder.parent.glob(f".{name}.making-*"):  # of killed processes: we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.making-", dir=folder.parent) as scratch:
            made = build(Path(scratch))
            seal(made, {})
            made.rename(folder)
    return folder
