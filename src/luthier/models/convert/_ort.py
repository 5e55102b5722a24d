"""The tensors of an .ort file, ONNX Runtime's own format: a FlatBuffer, read by its tables' offsets."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    import numpy as np

# Places of fields in their tables, of onnxruntime/core/flatbuffers/schema/ort.fbs (version 6).
_MODEL, _GRAPH, _INITIALIZERS = 1, 7, 0
_NAME, _DIMS, _TYPE, _RAW = 0, 2, 3, 4
_TYPES = {1: "<f4", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the constants of the graph by name; those of other kinds than plain numbers are left.

    Raises `LuthierError` for what is no .ort file, or ends before its tables do.
    """
    import numpy as np

    data = path.read_bytes()
    if data[4:8] != b"ORTM":
        raise LuthierError(f"{path} is no .ort file of ONNX Runtime: it does not say ORTM at its start.")
    found = {}
    try:
        graph = _table(data, _table(data, _root(data), _MODEL), _GRAPH)
        for tensor in _tables(data, graph, _INITIALIZERS):
            kind = _TYPES.get(_scalar(data, tensor, _TYPE))
            raw = _vector(data, tensor, _RAW)
            if kind is None or raw is None:
                continue
            start, count = _vector(data, tensor, _DIMS) or (0, 0)
            shape = struct.unpack_from(f"<{count}q", data, start)
            array = np.frombuffer(data, kind, raw[1] // np.dtype(kind).itemsize, raw[0])
            found[_string(data, tensor, _NAME)] = array.reshape(shape).copy()
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise LuthierError(f"{path} is damaged: {error}.") from None
    return found


def _root(data: bytes) -> int:
    return _at(data, 0)


def _at(data: bytes, place: int) -> int:
    """Where the offset that stands at this place points."""
    return place + struct.unpack_from("<I", data, place)[0]


def _field(data: bytes, table: int, number: int) -> int | None:
    """The place of a field of a table; None where the table leaves it out."""
    names = table - struct.unpack_from("<i", data, table)[0]
    length = struct.unpack_from("<H", data, names)[0]
    if 4 + 2 * number >= length:
        return None
    offset = struct.unpack_from("<H", data, names + 4 + 2 * number)[0]
    return table + offset if offset else None


def _table(data: bytes, table: int, number: int) -> int:
    place = _field(data, table, number)
    if place is None:
        raise ValueError("it lacks its graph")
    return _at(data, place)


def _scalar(data: bytes, table: int, number: int) -> int:
    place = _field(data, table, number)
    return 0 if place is None else struct.unpack_from("<i", data, place)[0]


def _vector(data: bytes, table: int, number: int) -> tuple[int, int] | None:
    """(place of the first, count) of a vector; None where the table leaves it out."""
    place = _field(data, table, number)
    if place is None:
        return None
    start = _at(data, place)
    return start + 4, struct.unpack_from("<I", data, start)[0]


def _tables(data: bytes, table: int, number: int) -> Iterator[int]:
    start, count = _vector(data, table, number) or (0, 0)
    for each in range(count):
        yield _at(data, start + 4 * each)


def _string(data: bytes, table: int, number: int) -> str:
    start, count = _vector(data, table, number) or (0, 0)
    return data[start : start + count].decode()
