"""JSON and text files that are read with care, and are there whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import UNSYNCED, real_file, sync_folder
from luthier.core.guard import guarded, reason
from luthier.core.json_text import once

LARGEST_JSON = 32 * 2**20


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """Returns a JSON file; damage, duplicate keys, absurd sizes, numbers and nesting raise `LuthierError`."""
    try:
        if path.stat().st_size > largest:
            raise LuthierError(f"{path} is larger than {largest >> 20} MiB; Luthier writes no such file.")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except LuthierError:
        raise
    except FileNotFoundError:
        raise LuthierError(f"{path} does not exist.") from None
    except Exception as error:  # of syntax, encoding, nesting and numbers of too many digits
        raise LuthierError(f"{path} cannot be read as JSON ({reason(error)}).") from None


def read_text(path: Path) -> str:
    """Returns a text file of others; one that cannot be opened, or is not UTF-8, raises `LuthierError`."""
    with guarded(f"{path} cannot be read"):
        return path.read_text(encoding="utf-8")


@contextmanager
def recorded(path: Path, largest: int = LARGEST_JSON) -> Iterator[Any]:
    """What a JSON file of a work's own says, for the block that takes it apart: entries that are missing, or of another
    kind, are told as damage."""
    with guarded(f"{path} is damaged, or was changed by hand"):
        yield read_json(path, largest)


def finite(value: Any) -> Any:
    """Returns a value as JSON holds it: null for NaN and infinities, which it has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def replace_json(path: Path, value: Any) -> None:
    """`write_json` that is there whole or not at all."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """A text that is there whole or not at all, under a hidden name until it is on disk."""
    path = real_file(path)
    hidden = path.with_name(f".{path.name}")
    try:
        hidden.write_text(text, encoding="utf-8")
        sync_folder(hidden)
        os.replace(hidden, path)
    except OSError:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise
    try:
        sync_folder(path.parent)
    except OSError as error:  # of which reasons are told in others' words, "cannot be written" among them
        raise OSError(error.errno, f"{error.strerror}; what is new is there, but {UNSYNCED}") from error


def append_text(path: Path, text: str, mode: int = 0o666, sync: bool = False) -> None:
    """Appends lines of JSON, all of them or none: half a line would spoil the one that comes after it when there is
    space again. `mode` is that of a file that is made. Halves of surrogate pairs, which UTF-8 lacks, become JSON's
    escapes, which are read as what they were."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    before = os.fstat(handle).st_size
    left = memoryview(text.encode("utf-8", "backslashreplace"))
    whole = len(left)
    try:
        while left:
            left = left[os.write(handle, left) :]
        if sync:
            os.fsync(handle)
    except OSError:
        with suppress(OSError):  # a pipe or a device keeps what it was given
            if os.fstat(handle).st_size == before + whole - len(left):  # nobody else has appended meanwhile
                os.ftruncate(handle, before)
        raise
    finally:
        os.close(handle)


def as_read(value: Any) -> Any:
    """Returns a value as its JSON is read: tuples are lists, keys are strings."""
    if isinstance(value, dict):
        return {str(key): as_read(each) for key, each in value.items()}
    return [as_read(each) for each in value] if isinstance(value, list | tuple) else value
