"""Files: numbered rows of columns from a file, by what its suffix says that it holds."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.data.records import records
from luthier.data.table import Numbered, Row, without_nulls


def read_file(path: Path, split: str) -> tuple[list[tuple[int, Row]], list[tuple[int, str]]]:
    """Reads (good rows, bad rows) of one file; of a JSON object of splits, those of one split."""
    reader = _reader(path)
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise LuthierError(f"{path} is a pointer of Git LFS and holds no rows; fetch it: git lfs pull.")
    rows = read_json(path, split) if reader is read_json else reader(path)
    good: list[tuple[int, Row]] = []
    bad: list[tuple[int, str]] = []
    for number, row in rows:
        if isinstance(row, str):
            bad.append((number, row))
        else:
            good.append((number, row))
    return good, bad


POINTER = b"version https://git-lfs.github.com/spec/"


def _zst(packed: bytes) -> bytes:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(packed), "zstd") as stream:
        return stream.read()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _zst,
}
"""How a compressed file is unpacked, by its last suffix; the one before it tells what it holds."""


def suffix(path: Path) -> str:
    """What a file holds by its name, in lower case, without what it is compressed by."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() if last in PACKED else last


def _bytes(path: Path) -> bytes:
    unpack = PACKED.get(path.suffix.lower())
    if unpack is None:
        return path.read_bytes()
    try:
        return unpack(path.read_bytes())
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise LuthierError(f"{path} cannot be unpacked: {error}.") from None


def _reader(path: Path) -> Callable[[Path], Iterator[Numbered]]:
    found = suffix(path)
    if found not in READERS:
        raise LuthierError(f"{path}: cannot read {found or 'no suffix'!r}. Known: {', '.join(READERS)}.")
    return READERS[found]


def _decode(data: bytes) -> str:
    """Bytes that are not UTF-8 become lone surrogates, which the layouts refuse with the row's
    number."""
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def read_jsonl(path: Path) -> Iterator[Numbered]:
    """One JSON object per line (or a conversation as a list); blank lines are passed over, and counted."""
    for number, line in enumerate(_bytes(path).split(b"\n"), 1):
        text = _decode(line).strip()
        if text:
            yield number, _parsed(text)


def _parsed(text: str) -> Row | str:
    try:
        return _row(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        return f"invalid JSON: {error}"


def _row(value: Any) -> Row | str:
    """The columns of a JSON value; a bare list of turns is a conversation."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return {"messages" if "role" in value[0] else "conversations": value}
    return value if isinstance(value, dict) else f"a JSON {type(value).__name__}, expected an object"


HOLDERS = ("data", "rows", "examples", "instances", "records", "items")
"""Keys under which a JSON object may hold all rows."""


def read_json(path: Path, split: str = "train") -> Iterator[Numbered]:
    """A list of objects, or an object of such lists by split or under a key such as `data`; a file that is not JSON as
    a whole is read as one object per line."""
    text = _decode(_bytes(path)).strip()
    try:
        values = json.loads(text) if text else []
    except (json.JSONDecodeError, RecursionError) as error:
        if not text.startswith("[") or text.split("\n", 1)[0].rstrip().endswith("]"):
            yield from read_jsonl(path)
            return
        raise LuthierError(f"{path} is not valid JSON: {error}.") from None
    if isinstance(values, dict):
        values = _held(path, values, split)
    for number, value in enumerate(values, 1):
        yield number, _row(value)


def _held(path: Path, value: Row, split: str) -> list[Any]:
    """The rows in an object: those of a split, those under its one list, or the object as the only row."""
    from luthier.data.splits import of_split, split_of

    lists = {key: rows for key, rows in value.items() if isinstance(rows, list)}
    splits = {name: key for key in lists if (name := split_of(key, whole=True))}
    if splits and all(isinstance(row, dict | list) for key in splits.values() for row in lists[key]):
        return lists[splits[of_split(str(path), split, splits)]]
    holder = next((key for key in HOLDERS if key in lists and set(lists) == {key}), None)
    return [value] if holder is None else lists[holder]


def read_csv(path: Path) -> Iterator[Numbered]:
    """Comma-separated, quoted as RFC 4180, with a header; a row's number is the line that it
    starts on."""
    lines, header, start = _headed(path, csv.QUOTE_MINIMAL)
    for each in records(lines, start, len(header)):
        yield each.first + 1, each.wrong or dict(zip(header, each.cells, strict=True))


def read_tsv(path: Path) -> Iterator[Numbered]:
    """Tab-separated with a header and no quoting (IANA text/tab-separated-values): a `"` is a
    plain character."""
    lines, header, start = _headed(path, csv.QUOTE_NONE, delimiter="\t")
    for number, line in enumerate(lines[start:], start + 1):
        cells = line[:-1].split("\t")
        if line != "\n":
            same = len(cells) == len(header)
            wrong = f"{len(cells)} cells, the header has {len(header)}"
            yield number, dict(zip(header, cells, strict=True)) if same else wrong


def _headed(path: Path, quoting: Any, delimiter: str = ",") -> tuple[list[str], list[str], int]:
    """(lines, header, place of the line after it)."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = [line.rstrip("\r") + "\n" for line in _decode(_bytes(path)).split("\n")]
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise LuthierError(f"{path}: the header is malformed: {error}.") from None
    if len(set(header)) < len(header):
        raise LuthierError(f"{path}: a column occurs twice in the header {header}.")
    return lines, header, reader.line_num


def read_text(path: Path) -> Iterator[Numbered]:
    """A file of plain text is one row, `{"text": …}`; an empty one is none."""
    text = _decode(_bytes(path)).replace("\r\n", "\n")
    if text.strip():
        yield 1, {"text": text}


def read_parquet(path: Path) -> Iterator[Numbered]:
    """Apache Parquet, through pyarrow (which comes with `datasets`)."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise LuthierError(f"{path} is not a readable Parquet file: {error}.") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield number, {column: without_nulls(value) for column, value in row.items()}


READERS: dict[str, Callable[[Path], Iterator[Numbered]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".txt": read_text,
    ".md": read_text,
}
"""Reader of each suffix."""
