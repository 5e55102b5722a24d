"""Models larger than memory: weights that lie in files leave memory again while a command goes through them."""

from __future__ import annotations

import ctypes
import functools
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

LEAST, SHARE = 48 * 2**20, 64
"""Bytes of mapped files that may come into memory before they are evicted; at least that part of all weights."""
LARGE = 2**20
"""Bytes of a tensor from which on it is worth a file."""
SUFFIXES, BLOBS = (".safetensors", ".mapped"), "/blobs/"
"""How files of weights end, and where the hub's cache has them, under the names of their hashes."""
PAGE, PAGES = mmap.PAGESIZE, "/proc/self/pagemap"
DONT_NEED = 4  # of madvise, on Linux
PRESENT, SWAPPED, OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))

_folder: Path | None = None
_before, _most = 0, LEAST


@contextmanager
def low_memory(folder: Path) -> Iterator[None]:
    """Keeps little of mapped weights in memory while the context lasts, and puts new large tensors into files of
    `folder`, which have no name and go with the tensor.

    safetensors is mapped, not read: a page comes into memory when it is touched, and stays until the memory is wanted.
    Here it is given back as soon as much of it has come, which costs reading it again. Linux alone tells which pages
    these are; elsewhere nothing happens.
    """
    global _folder, _before, _most
    if _folder is not None or not _told():
        yield
        return
    _before, _most = _mapped_bytes(), LEAST
    _folder = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    hooks = [
        register(lambda *_: evict()) for register in (register_module_forward_pre_hook, register_module_forward_hook)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _folder = None


def active() -> bool:
    """Whether mapped weights are to leave memory again."""
    return _folder is not None


def evict() -> None:
    """Gives back the memory of mapped weights, where `low_memory` is on and much has come since the last time."""
    global _before, _most
    if _folder is None or _mapped_bytes() - _before < _most:
        return
    found = 0
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps, open(PAGES, "rb") as pages:
        for line in maps:
            words = line.split(maxsplit=5)
            if len(words) == 6 and _holds_weights(words[5].strip().removesuffix(" (deleted)")):
                start, end = (int(word, 16) for word in words[0].split("-"))
                _evict_clean(pages, start, end)
                found += end - start
    _before, _most = _mapped_bytes(), max(LEAST, found // SHARE)


def _holds_weights(name: str) -> bool:
    return name.endswith(SUFFIXES) or BLOBS in name


def spilled(tensor: Tensor) -> Tensor:
    """Returns the tensor from a file, where `low_memory` is on and it is large; elsewhere as it is."""
    size = tensor.numel() * tensor.element_size()
    if _folder is None or size < LARGE or tensor.device.type != "cpu":
        return tensor
    try:
        with tempfile.NamedTemporaryFile(dir=_folder, prefix=".luthier-", suffix=".mapped") as file:
            for piece in pieces(tensor):
                file.write(piece)
            file.flush()
            held = torch.UntypedStorage.from_file(file.name, False, size)  # a mapping outlives the file's name
    except OSError:  # of a disk that is full: then it stays in memory, which may have room
        return tensor
    return torch.empty(0, dtype=tensor.dtype).set_(held, 0, tensor.shape)  # pyright: ignore


def pieces(tensor: Tensor, most: int = 2**24) -> Iterator[memoryview]:
    """The bytes of a tensor, some at a time."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        held = memoryview(flat.view(torch.uint8).numpy().data)
        for start in range(0, len(held), most):
            yield held[start : start + most]
            evict()


def _mapped_bytes() -> int:
    """Bytes of files that this process has in memory, its libraries included."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[2]) * PAGE


def _evict_clean(pages: Any, start: int, end: int) -> None:
    """Gives back the pages of a mapping that are as the file has them; one that was written to is the only copy."""
    pages.seek(start // PAGE * 8)
    told = np.frombuffer(pages.read((end - start) // PAGE * 8), np.uint64)
    clean = (told & PRESENT != 0) & (told & OF_FILE != 0) & (told & SWAPPED == 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], clean, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2).tolist():
        _libc().madvise(ctypes.c_void_p(start + first * PAGE), ctypes.c_size_t((last - first) * PAGE), DONT_NEED)


def _told() -> bool:
    """Whether the system tells which pages are in memory."""
    try:
        with open(PAGES, "rb") as file:
            return len(file.read(8)) == 8
    except OSError:
        return False


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
