"""Models larger than memory: weights that lie in files leave memory again while a command goes through them."""

from __future__ import annotations

import ctypes
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

MOST = 32 * 2**20
"""Bytes of mapped files that may be in memory before they are let go."""
LARGE = 2**20
"""Bytes of a tensor from which on it is worth a file."""
SUFFIXES = (".safetensors", ".mapped")
PAGE = mmap.PAGESIZE
DONT_NEED = 4  # of madvise, on Linux
PRESENT, SWAPPED, OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))

_folder: Path | None = None
_before = 0


@contextmanager
def sparing(folder: Path) -> Iterator[None]:
    """Keeps little of mapped weights in memory while the context lasts, and puts new large tensors into files of
    `folder`, which have no name and go with the tensor.

    safetensors is mapped, not read: a page comes into memory when it is touched, and stays until the memory is wanted.
    Here it is given back as soon as there are more than `MOST` bytes, which costs nothing but reading it again. Linux
    alone tells which pages these are; elsewhere nothing happens.
    """
    global _folder, _before
    if _folder is not None or not Path("/proc/self/pagemap").exists():
        yield
        return
    _folder, _before = next(each for each in (folder, *folder.absolute().parents) if each.is_dir()), _mapped_bytes()
    hooks = [
        register(lambda *_: let_go()) for register in (register_module_forward_pre_hook, register_module_forward_hook)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _folder = None


def rests() -> bool:
    """Whether mapped weights are to leave memory again."""
    return _folder is not None


def let_go() -> None:
    """Gives back the memory of mapped weights, where `sparing` is on and there is much of it."""
    if _folder is None or _mapped_bytes() - _before < MOST:
        return
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps, open("/proc/self/pagemap", "rb") as pages:
        for line in maps:
            words = line.split(maxsplit=5)
            if len(words) == 6 and words[5].strip().removesuffix(" (deleted)").endswith(SUFFIXES):
                start, end = (int(word, 16) for word in words[0].split("-"))
                _leave(pages, start, end)


def put_away(tensor: Tensor) -> Tensor:
    """Returns the tensor from a file, where `sparing` is on and it is large; elsewhere as it is."""
    size = tensor.numel() * tensor.element_size()
    if _folder is None or size < LARGE or tensor.device.type != "cpu":
        return tensor
    with tempfile.NamedTemporaryFile(dir=_folder, suffix=".mapped") as file:
        for piece in pieces(tensor):
            file.write(piece)
        file.flush()
        held = torch.UntypedStorage.from_file(file.name, False, size)  # a mapping outlives the file's name
    return torch.empty(0, dtype=tensor.dtype).set_(held, 0, tensor.shape)  # pyright: ignore


def pieces(tensor: Tensor, most: int = 2**24) -> Iterator[memoryview]:
    """The bytes of a tensor, some at a time."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        held = memoryview(flat.view(torch.uint8).numpy().data)
        for start in range(0, len(held), most):
            yield held[start : start + most]
            let_go()


def _mapped_bytes() -> int:
    """Bytes of files that this process has in memory, its libraries included."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[2]) * PAGE


def _leave(pages: Any, start: int, end: int) -> None:
    """Gives back the pages of a mapping that are as the file has them; one that was written to is the only copy."""
    pages.seek(start // PAGE * 8)
    told = np.frombuffer(pages.read((end - start) // PAGE * 8), np.uint64)
    clean = (told & PRESENT != 0) & (told & OF_FILE != 0) & (told & SWAPPED == 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], clean, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2).tolist():
        _libc().madvise(ctypes.c_void_p(start + first * PAGE), ctypes.c_size_t((last - first) * PAGE), DONT_NEED)


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
