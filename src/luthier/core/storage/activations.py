"""Activations of rows on disk: one file of numbers, and one that says which of them are there and whole."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.guard import is_full, reason
from luthier.core.records import read_json, replace_json

ABOUT, NUMBERS, SUMS = "about.json", "activations.bin", "sums.bin"
"""What the activations are of; the numbers, row after row; of each row 2^32 + the CRC-32 of its numbers, or 0."""
THERE = 1 << 32


class Activations:
    """Activations [length, d] of rows that are known by their tokens, in a folder that one process writes to.

    What is read is compared with its checksum, so that a row of which a kill or a disk left something else counts as
    one that is not there, as does a folder that is about something else. Rows of the same tokens have one place.
    """

    def __init__(
        self,
        folder: Path,
        rows: Iterable[Sequence[np.ndarray]],
        width: int,
        dtype: torch.dtype,
        about: Mapping[str, Any],
    ) -> None:
        """`rows` have the token ids [length] of all that may be kept, `about` tells (as JSON) what else decides their
        numbers; nothing is written yet."""
        self.folder, self.width, self.dtype = folder, width, dtype
        self._places: dict[bytes, int] = {}
        starts = [0]
        for row in rows:
            key = digest(row)
            if key not in self._places:
                self._places[key] = len(self._places)
                starts.append(starts[-1] + len(row[0]))
        self._starts = np.array(starts, np.int64) * width * dtype.itemsize
        self._sums = np.zeros(len(self._places), np.uint64)
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        fingerprint = hashlib.sha256(b"".join(self._places)).hexdigest()
        self.about = {**about, "rows": fingerprint, "width": width, "dtype": str(dtype)}
        self.failed = False
        """Whether the disk refused something; then nothing more is written."""
        self.damaged = 0
        """Rows that were found to be damaged."""

    @property
    def bytes(self) -> int:
        """The size of the numbers of all rows."""
        return int(self._starts[-1])

    def open(self) -> None:
        """Opens what the folder holds of just this, or begins it anew, with room for all of it.

        Raises `OSError` where that cannot be written.
        """
        if not self._holds():
            self._begin()
        numbers, sums = ((self.folder / name).open("r+b", buffering=0) for name in (NUMBERS, SUMS))
        self._files = numbers, sums
        self._sums = np.frombuffer(sums.read(), np.uint64).copy()

    def _holds(self) -> bool:
        with suppress(LuthierError, OSError):
            sizes = [(self.folder / name).stat().st_size for name in (NUMBERS, SUMS)]
            return read_json(self.folder / ABOUT) == self.about and sizes == [self.bytes, self._sums.nbytes]
        return False

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if any((self.folder / name).exists() for name in (ABOUT, NUMBERS, SUMS)):
            warnings.warn(f"{self.folder} is damaged, or of something else; it is made anew.", stacklevel=3)
            (self.folder / ABOUT).unlink(missing_ok=True)
        for name, size in ((SUMS, self._sums.nbytes), (NUMBERS, self.bytes)):
            with (self.folder / name).open("wb") as file:
                _reserve(file, size)
        replace_json(self.folder / ABOUT, self.about)

    def place(self, row: Sequence[Tensor]) -> int | None:
        """Returns the place of a row of these token ids."""
        return self._places.get(digest([each.numpy() for each in row]))

    def read(self, place: int, into: Tensor) -> bool:
        """Fills `into` [length, d]; False where the row is not there, or damaged, which is told once."""
        if self._files is None or not self._sums[place]:
            return False
        numbers, _ = self._files
        held = memoryview(into.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
        numbers.seek(int(self._starts[place]))
        if numbers.readinto(held) == held.nbytes and self._sums[place] == THERE + zlib.crc32(held):  # type: ignore[attr-defined]
            return True
        if not self.damaged:
            warnings.warn(f"{self.folder} is damaged; what is there of such rows is computed again.", stacklevel=2)
        self.damaged += 1
        self._sums[place] = 0
        return False

    def write(self, place: int, found: Tensor) -> None:
        """Keeps the activations of a row; where the disk refuses them, that is told once, and they are not kept."""
        if self._files is None or self.failed:
            return
        held = memoryview(found.contiguous().view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
        total = np.array([THERE + zlib.crc32(held)], np.uint64)
        starts = int(self._starts[place]), place * total.nbytes
        try:
            for file, start, data in zip(self._files, starts, (held, total.tobytes()), strict=True):
                file.seek(start)
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.failed = True
            warnings.warn(f"{self.folder} cannot be written ({reason(error)}); rows are computed again.", stacklevel=2)
            return
        self._sums[place] = total[0]

    def close(self) -> None:
        """Closes the files."""
        for file in self._files or ():
            file.close()
        self._files = None

    def remove(self) -> None:
        """Removes the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def digest(row: Sequence[np.ndarray]) -> bytes:
    """Returns what a row is known by."""
    found = hashlib.blake2b(digest_size=16)
    for each in row:
        found.update(np.asarray(each, np.int64).tobytes())
    return found.digest()


def room(folder: Path) -> int:
    """Returns the free bytes of the disk that a folder is on, or is to be."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    return shutil.disk_usage(there).free


def _reserve(file: BinaryIO, size: int) -> None:
    """Makes a file of zeros with room on the disk, where the system can give it that."""
    try:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    except (AttributeError, OSError) as error:  # Windows has none, and some file systems cannot
        if is_full(error):
            raise
        file.truncate(size)
