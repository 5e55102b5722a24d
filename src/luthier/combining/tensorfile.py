"""A safetensors file written one tensor at a time, so that a large adapter is never in memory at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
}


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFile:
    """Tensors are appended to a scratch file in `folder`; `finish` puts the header before them."""

    def __init__(self, folder: Path) -> None:
        self._scratch = folder / ".tensors"
        self._data = open(self._scratch, "wb")  # noqa: SIM115
        self._entries: list[_Entry] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Appends a tensor."""
        start, flat = self._data.tell(), tensor.detach().cpu().contiguous().reshape(-1)
        self._data.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        self._entries.append(_Entry(name, tensor.dtype, tuple(tensor.shape), start, self._data.tell() - start))

    def finish(self, path: Path, rename: Callable[[str], str]) -> None:
        """Writes `path`, every name through `rename`, wide numbers first so that all are aligned."""
        self._data.close()
        ordered = sorted(self._entries, key=lambda entry: -entry.dtype.itemsize)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for entry in ordered:
            span = [end, end + entry.size]
            header[rename(entry.name)] = {"dtype": NAMES[entry.dtype], "shape": entry.shape, "data_offsets": span}
            end = span[1]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as out, open(self._scratch, "rb") as data:
            out.write(len(text).to_bytes(8, "little") + text)
            for entry in ordered:
                data.seek(entry.start)
                _copy(data, out, entry.size)
        self._scratch.unlink()

    def close(self) -> None:
        """Lets go of the scratch file."""
        self._data.close()
        self._scratch.unlink(missing_ok=True)


def _copy(data, out, size: int) -> None:
    while size > 0:
        block = data.read(min(size, shutil.COPY_BUFSIZE))  # type: ignore[attr-defined]
        out.write(block)
        size -= len(block)
