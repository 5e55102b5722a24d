"""Locks on folders, held by many readers or one writer: a process that ends lets go of its own."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock

from luthier.core.errors import LuthierError

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None

PATIENCE = 60.0
"""Seconds to wait while another process renames beside a folder, which takes it milliseconds."""
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
Release = Callable[[], None]


def lock(folder: Path, *, shared: bool = False, patience: float | None = None) -> Release | None:
    """Locks a folder and returns what lets go of it; None where the file system has no locks.

    Raises `LuthierError` when somebody else has kept it for `patience` seconds (`PATIENCE`), `OSError` for a folder
    that is not there or may not be read. Where folders cannot be locked (Windows), a file stands for each, and readers
    take turns.
    """
    patience = PATIENCE if patience is None else patience
    if fcntl is None:
        return _by_file(folder, patience)
    handle, until = os.open(folder, os.O_RDONLY | os.O_DIRECTORY), time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return lambda: _let_go(handle)
        except OSError as error:
            if error.errno not in BUSY:
                os.close(handle)
                return None
            if time.monotonic() > until:
                os.close(handle)
                raise _kept(folder, patience) from None
        time.sleep(0.005)


def _let_go(handle: int) -> None:
    fcntl.flock(handle, fcntl.LOCK_UN)  # a process forked meanwhile has the descriptor too
    os.close(handle)


def _by_file(folder: Path, patience: float) -> Release:
    next(folder.iterdir(), None)  # raises for a folder that is not there
    place = Path(tempfile.gettempdir()) / "luthier-locks"
    place.mkdir(exist_ok=True)
    name = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:32]
    again = patience > 0  # a reader may read within a read; who only asks may be the holder itself, and is to be told
    held = filelock.FileLock(place / f"{name}.lock", is_singleton=again)
    try:
        held.acquire(timeout=patience, poll_interval=0.005)
    except filelock.Timeout:
        raise _kept(folder, patience) from None
    return held.release


def _kept(folder: Path, patience: float) -> LuthierError:
    return LuthierError(
        f"another process has kept {folder} locked for {patience:g} seconds; try again when it is done."
    )
