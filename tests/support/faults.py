"""Faults: the steps by which files are written fail, each in turn, as they do on a full disk.

A step is a file opened for writing, a rename, a removal, a folder made, a sync, or a text or tensors half written.
"""

from __future__ import annotations

import errno
import os
import pathlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch

from luthier.core.storage import store
from luthier.training import checkpointed

EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
WRITES = os.O_WRONLY | os.O_RDWR


@dataclass
class Faults:
    """Step number `at` below `root` fails."""

    root: str
    at: int
    count: int = 0
    what: str = ""

    def step(self, what: str, path: Any) -> bool:
        """Whether this step is to fail."""
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if not text.startswith(self.root) or ".owner" in text:  # whose folder it is, is no part of what is saved
            return False
        self.count += 1
        if self.count != self.at:
            return False
        self.what = f"{what} {text.removeprefix(self.root)}"
        return True


_active: list[Faults] = []


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _hook(event: str, given: tuple) -> None:
    if not _active:
        return
    writing = event == "open" and isinstance(given[2], int) and given[2] & WRITES
    if (writing or event in EVENTS) and _active[0].step(event, given[0]):
        raise full()


@contextmanager
def faults(root: Path, at: int) -> Iterator[Faults]:
    """Step number `at` in `root` fails while the context lasts."""
    if _hook not in _hooked:
        sys.addaudithook(_hook)
        _hooked.append(_hook)
    found = Faults(str(root), at)
    sync, write, save = os.fsync, pathlib.Path.write_text, torch.save

    def fsync(handle: int) -> None:
        if found.step("fsync", os.readlink(f"/proc/self/fd/{handle}")):
            raise full()
        sync(handle)

    def write_text(self: Path, data: str, *rest: Any, **named: Any) -> int:
        if found.step("half", self):
            write(self, data[: len(data) // 2], *rest, **named)
            raise full()
        return write(self, data, *rest, **named)

    def save_file(tensors: dict, path: Path, *rest: Any, **named: Any) -> None:
        if found.step("half", path):
            Path(path).write_bytes(b"half")
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        safetensors.torch.save_file(tensors, path, *rest, **named)

    def torch_save(value: Any, path: Any, *rest: Any, **named: Any) -> None:
        if found.step("half", path):
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0")
        save(value, path, *rest, **named)

    with (
        mock.patch("os.fsync", fsync),
        mock.patch.object(pathlib.Path, "write_text", write_text),
        mock.patch.object(store, "save_file", save_file),
        mock.patch.object(checkpointed, "save_file", save_file),
        mock.patch("torch.save", torch_save),
    ):
        _active.append(found)
        try:
            yield found
        finally:
            _active.remove(found)


_hooked: list[Any] = []
