"""The header of a GGUF file, read without its weights: no size in it may be larger than the file is.

The reader of `gguf` believes every count, and loops over an array of 2^60 values that are not there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from luthier.core.errors import LuthierError

TYPES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How `struct` calls a type of number, by its number in the file."""
STRING, ARRAY = 8, 9
DIMENSIONS, NESTED = 8, 4
LISTED = 4096
"""Numbers of the longest array that is kept: one has a number for each layer; the scores of tokens are longer."""


@dataclass(frozen=True)
class Header:
    """Metadata by their keys (numbers, texts, short arrays of numbers), and the shapes of the tensors."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def largest(self, key: str) -> int:
        """Returns a size of the model, `<architecture>.<key>`: of several layers the largest, and 0 if it is not there.

        Raises `LuthierError` where it is not a number.
        """
        key = f"{self.values.get('general.architecture')}.{key}"
        found = self.values.get(key, 0)
        found = max(found, default=0) if isinstance(found, tuple) else found
        if not isinstance(found, int):
            raise LuthierError(
                f"{self.path} is damaged: {key} is {str(found)[:40]!r}, where a whole number is expected."
            )
        return found


def read_header(path: Path) -> Header:
    """Returns the header; raises `LuthierError` for one that is cut short, or names more than its file holds."""
    with path.open("rb") as file:
        return _Reader(path, file).read()


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.size, self.order = path, file, path.stat().st_size, "<"

    def read(self) -> Header:
        if self.file.read(4) != b"GGUF":
            raise LuthierError(f"{self.path} is not a readable GGUF file: it does not begin with GGUF.")
        version = self.number("I")
        if not version & 0xFFFF:  # of a machine with the other order of bytes
            self.order = ">"
        tensors, count = self.number("Q"), self.number("Q")
        self.within(tensors * 24 + count * 13)
        values = {self.text(): self.value(self.number("I")) for _ in range(count)}
        return Header(self.path, values, [self.tensor() for _ in range(tensors)])

    def tensor(self) -> tuple[int, ...]:
        self.skip(self.number("Q"))  # its name
        count = self.number("I")
        if count > DIMENSIONS:
            raise LuthierError(f"{self.path} is damaged: a tensor of {count} dimensions.")
        shape = tuple(self.number("Q") for _ in range(count))
        self.skip(12)
        return shape

    def value(self, kind: int, depth: int = 0) -> Any:
        """A number, a text, a short array of numbers; None for a longer one, or one of texts."""
        if kind in TYPES:
            return self.number(TYPES[kind])
        if kind == STRING and not depth:
            return self.text()
        if kind == STRING:
            return self.skip(self.number("Q"))
        if kind == ARRAY and depth < NESTED:
            return self.array(depth)
        raise LuthierError(f"{self.path} is damaged: a value of type {kind}.")

    def array(self, depth: int) -> tuple[Any, ...] | None:
        inner, count = self.number("I"), self.number("Q")
        size = struct.calcsize(self.order + TYPES[inner]) if inner in TYPES else 8
        self.within(count * size)
        if inner in TYPES:
            return (
                tuple(self.number(TYPES[inner]) for _ in range(count)) if count <= LISTED else self.skip(count * size)
            )
        for _ in range(count):
            self.value(inner, depth + 1)
        return None

    def text(self) -> str:
        size = self.number("Q")
        self.within(size)
        return self.file.read(size).decode(errors="replace")

    def number(self, kind: str) -> Any:
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
