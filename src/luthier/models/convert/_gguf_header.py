"""The header of a GGUF file, read for its sizes alone: none may be larger than the file is.

The reader of `gguf` believes every count, and loops over an array of 2^60 values that are not there.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from luthier.core.errors import LuthierError

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its type's number."""
STRING, ARRAY = 8, 9
DIMENSIONS, NESTED = 8, 4


def check_header(path: Path) -> None:
    """Raises `LuthierError` for a header that is cut short, or names more than its file holds."""
    with path.open("rb") as file:
        _Header(path, file).check()


class _Header:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.size, self.order = path, file, path.stat().st_size, "<"

    def check(self) -> None:
        if self.file.read(4) != b"GGUF":
            raise LuthierError(f"{self.path} is not a readable GGUF file: it does not begin with GGUF.")
        version = self.number("I")
        if not version & 0xFFFF:  # of a machine with the other order of bytes
            self.order = ">"
        tensors, values = self.number("Q"), self.number("Q")
        self.within(tensors * 24 + values * 13)
        for _ in range(values):
            self.text()
            self.value(self.number("I"))
        for _ in range(tensors):
            self.text()
            count = self.number("I")
            if count > DIMENSIONS:
                raise LuthierError(f"{self.path} is damaged: a tensor of {count} dimensions.")
            self.skip(8 * count + 12)

    def value(self, kind: int, depth: int = 0) -> None:
        if kind in SIZES:
            self.skip(SIZES[kind])
        elif kind == STRING:
            self.text()
        elif kind == ARRAY and depth < NESTED:
            self.array(depth)
        else:
            raise LuthierError(f"{self.path} is damaged: a value of type {kind}.")

    def array(self, depth: int) -> None:
        inner, count = self.number("I"), self.number("Q")
        self.within(count * SIZES.get(inner, 8))
        if inner in SIZES:
            self.skip(count * SIZES[inner])
            return
        for _ in range(count):
            self.value(inner, depth + 1)

    def text(self) -> None:
        self.skip(self.number("Q"))

    def number(self, kind: str) -> int:
        form = self.order + kind
        raw = self.file.read(struct.calcsize(form))
        if len(raw) < struct.calcsize(form):
            raise LuthierError(f"{self.path} is cut short within its header.")
        return struct.unpack(form, raw)[0]

    def skip(self, size: int) -> None:
        self.within(size)
        self.file.seek(size, 1)

    def within(self, size: int) -> None:
        if self.file.tell() + size > self.size:
            raise LuthierError(f"{self.path} is damaged or cut short: its header names more than the file holds.")
