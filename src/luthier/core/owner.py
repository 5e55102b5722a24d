"""Who works in a folder: one process at a time, which others are told by name."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import psutil

from luthier.core.errors import LuthierError
from luthier.core.files import LOCK, OWNER, TRACES
from luthier.core.guard import on_disk, written
from luthier.core.records import read_json, replace_json

SAME = 60.0
"""Seconds by which two looks at when a process started may differ: it is told by the clock, which is set meanwhile."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, belongs to this process while the context lasts.

    The operating system lets the lock of a killed process go, so that what it left is not a hindrance (where a file
    system has no locks, `filelock` goes by the holder's process and host instead). A folder that was made here and
    still is empty is removed again. Raises `LuthierError` that says who holds it.
    """
    made = not folder.exists()
    with written(str(folder), "Choose another folder (out)."):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise LuthierError(_held(folder)) from None
    try:
        with written(str(folder), "Choose another folder (out)."):
            replace_json(folder / OWNER, _me(folder))
        with on_disk(str(folder), "Then run it again (with resume, where it had begun).", full_alone=True):
            yield
    finally:
        for trace in TRACES[1:]:
            with suppress(OSError):
                (folder / trace).unlink(missing_ok=True)
        lock.release()
        if made:
            with suppress(OSError):  # it holds something
                if [path.name for path in folder.iterdir()] == [LOCK]:  # which older versions of filelock leave
                    (folder / LOCK).unlink()
                folder.rmdir()


def is_worked_in(folder: Path) -> bool:
    """Returns whether a process of this machine works in a folder, by the trace that it leaves there: that very
    process, whose number another one may have by now, and that very folder, of which this may be a copy."""
    try:
        told = read_json(folder / OWNER)
        if told["host"] != socket.gethostname() or told["folder"] != _identity(folder):
            return False
        return abs(psutil.Process(told["pid"]).create_time() - told["started"]) < SAME
    except (LuthierError, KeyError, TypeError, ValueError, OSError, psutil.Error):
        return False


def _me(folder: Path) -> dict[str, object]:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    started = psutil.Process().create_time()
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    return me | {"started": started, "folder": _identity(folder)}


def _identity(folder: Path) -> list[int]:
    """What a folder keeps when it is renamed, and a copy has not."""
    state = folder.stat()
    return [state.st_dev, state.st_ino]


def _held(folder: Path) -> str:
    try:
        told = read_json(folder / OWNER)
        who = f"process {told['pid']} on {told['host']} has been working in it since {told['since']}"
    except (LuthierError, KeyError, TypeError):
        who = "another process has just begun to work in it"
    return f"{folder} is in use: {who}. Wait until it has ended, or choose another folder (out)."
