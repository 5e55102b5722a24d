"""Files: numbered rows of columns from a file, by what its suffix says that it holds."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import json
import lzma
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded, reason
from luthier.core.json_text import Twice, loads, loads_marked, repeated
from luthier.data.json_files import held, whole
from luthier.data.large import Groups, Lines, large
from luthier.data.records import quotes, records
from luthier.data.table import Numbered, Row, Table, known, table_rows, without_nulls


def read_file(path: Path, split: str) -> Table:
    """Reads one file; of a JSON object of splits, the rows of one split.

    The rows of a large `.jsonl` or `.parquet` file stay on disk, and each is read when it is asked for.
    """
    reader = _reader(path)
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise LuthierError(f"{path} is a pointer of Git LFS and holds no rows; fetch it: git lfs pull.")
    if path.suffix.lower() in STAY and large(path):
        return Table(*STAY[path.suffix.lower()](path), path.parent, class_names(path))
    return reader(path, split)


def _parted(path: Path, rows: Iterable[Numbered], beside: tuple[str, ...] = ()) -> Table:
    """The rows of a file, and those of them that cannot be read."""
    good: list[tuple[int, Row]] = []
    bad: list[tuple[int, str]] = []
    for number, row in rows:
        if isinstance(row, str):
            bad.append((number, row))
        else:
            good.append((number, row))
    return Table(good, bad, path.parent, class_names(path), beside=beside)


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


def stem(path: Path) -> str:
    """Returns a file's name without the suffixes that say what it holds and how it is packed."""
    return Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem


def suffix(path: Path) -> str:
    """What a file holds by its name, in lower case, without what it is compressed by."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() if last in PACKED else last


def _bytes(path: Path) -> bytes:
    unpack = PACKED.get(path.suffix.lower())
    with guarded(f"{path} cannot be read"):
        packed = path.read_bytes()
    with guarded(f"{path} cannot be unpacked"):
        found = packed if unpack is None else unpack(packed)
    with guarded(f"{path} begins as UTF-16 and is not UTF-16"):
        wide = found.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's "Unicode text"
        return found.decode("utf-16").encode() if wide else found


def _reader(path: Path) -> Callable[[Path, str], Table]:
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
    lines = _bytes(path).split(b"\n")
    first = next((text for line in lines if (text := _decode(line).strip())), "")
    if first.startswith("[") and (rows := _listed(b"\n".join(lines))) is not None:
        yield from enumerate((repeated(row) or _row(row) for row in rows), 1)
        return
    for number, line in enumerate(lines, 1):
        text = _decode(line).strip()
        if text:
            yield number, _parsed(text)


def _listed(data: bytes) -> list[Any] | None:
    """The rows of a file that is one list of objects as a whole, by whatever suffix; None of any other."""
    try:
        found = loads_marked(_decode(data))
    except Exception:
        return None
    rows = isinstance(found, list) and all(isinstance(each, dict) for each in found)
    return found if rows and found and not {"role", "from"} & set(found[0]) else None


def _groups(path: Path) -> tuple[Sequence[tuple[int, Row]], list[tuple[int, str]]]:
    found = Groups(path)
    return found.rows(), found.bad


def _lines(path: Path) -> tuple[Sequence[tuple[int, Row]], list[tuple[int, str]]]:
    state = path.stat()
    return _found_lines(path, path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)  # what a file holds is asked before it is loaded, and each pass takes long
def _found_lines(
    path: Path, where: Path, size: int, changed: int
) -> tuple[Sequence[tuple[int, Row]], list[tuple[int, str]]]:
    found = Lines(path, lambda line: _parsed(text) if (text := _decode(line).strip()) else None)
    return found.rows(), found.bad


STAY: dict[str, Callable[[Path], tuple[Sequence[tuple[int, Row]], list[tuple[int, str]]]]] = {
    ".jsonl": _lines,
    ".parquet": _groups,
}
"""How the rows of a large file are read one by one."""


def _parsed(text: str) -> Row | str:
    try:
        return _row(loads(text))
    except Twice as twice:
        return str(twice)
    except Exception as error:  # also of numbers too long, and of nesting
        return f"invalid JSON: {reason(error, bare=True)}"


def _row(value: Any) -> Row | str:
    """The columns of a JSON value; a bare list of turns is a conversation."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return {"messages" if "role" in value[0] else "conversations": value}
    return known(value) if isinstance(value, dict) else f"a JSON {type(value).__name__}, expected an object"


def read_json(path: Path, split: str = "train") -> Table:
    """A list of objects, or an object of such lists by split or under a key such as `data`; a file that is not JSON as
    a whole is read as one object per line."""
    text = _decode(_bytes(path)).strip()
    try:
        found = whole(path, loads_marked(text)) if text else []
    except LuthierError:
        raise
    except Exception as error:
        if not text.startswith("[") or text.split("\n", 1)[0].rstrip().endswith("]"):
            return _parted(path, read_jsonl(path))
        raise LuthierError(f"{path} is not valid JSON: {reason(error, bare=True)}.") from None
    values, beside = held(path, found, split) if isinstance(found, dict) else (found, ())
    rows = ((number, repeated(value) or _row(value)) for number, value in enumerate(values, 1))
    return _parted(path, rows, beside)


SEPARATORS = (";", "\t", "|")
"""What separates cells where no comma stands in the header; Excel writes semicolons where the comma is decimal."""


def read_csv(path: Path) -> Iterator[Numbered]:
    """Comma-separated (or as `SEPARATORS` say), quoted as RFC 4180, with a header; a row's number is the line that it
    starts on."""
    lines, header, start = _headed(path, csv.QUOTE_MINIMAL)
    if len(header) == 1 and (mark := next((each for each in SEPARATORS if each in lines[0]), None)):
        lines, header, start = _headed(path, csv.QUOTE_MINIMAL, mark)
    else:
        mark = ","
    yield from _quoted(lines, header, start, mark)


def _quoted(lines: Sequence[str], header: Sequence[str], start: int, mark: str) -> Iterator[Numbered]:
    found = records(lines, start, len(header), mark)
    decimal = _decimal(header, [each.cells for each in found if not each.wrong]) if mark == ";" else set()
    for each in found:
        cells = [cell.replace(",", ".") if i in decimal else cell for i, cell in enumerate(each.cells)]
        yield each.first + 1, each.wrong or _filled(header, cells)


MISSING = ("nan", "NaN", "NAN", "<NA>", "NaT")
"""Cells that pandas, NumPy and Arrow write for a value that is missing; they are read as such, as pandas does."""


def _filled(header: Sequence[str], cells: Sequence[str]) -> Row | str:
    if len(header) > 1 and [cell.strip() for cell in cells] == list(header):
        return "it is the header once more, as where files were joined end to end"
    return {name: None if cell in MISSING else cell for name, cell in zip(header, cells, strict=True)}


NUMBER = re.compile(r"\s*[-+]?\d+(,\d+)?\s*")
MEASURES = ("label", "score", "stars", "rating")
"""Columns that may hold one measurement a row; in any other, a comma between digits stays as it is."""


def _decimal(header: Sequence[str], rows: Sequence[Sequence[str]]) -> set[int]:
    """The columns of measurements with a decimal comma, as spreadsheets write them where cells are separated by
    semicolons."""
    columns = [[cell for cell in column if cell.strip() and cell not in MISSING] for column in zip(*rows, strict=True)]
    return {
        i
        for i, cells in enumerate(columns)
        if header[i].lower() in MEASURES and any("," in cell for cell in cells) and all(map(NUMBER.fullmatch, cells))
    }


def read_tsv(path: Path) -> Iterator[Numbered]:
    """Tab-separated with a header. A `"` is a plain character (IANA text/tab-separated-values), unless cells are quoted
    as CSV's are: pandas and spreadsheets write those so that hold a quote, a tab or a line break."""
    lines, header, start = _headed(path, csv.QUOTE_NONE, delimiter="\t")
    if quotes(lines, header, start, "\t"):
        yield from _quoted(*_headed(path, csv.QUOTE_MINIMAL, delimiter="\t"), "\t")
        return
    for number, line in enumerate(lines[start:], start + 1):
        cells = line[:-1].split("\t")
        if line != "\n":
            same = len(cells) == len(header)
            wrong = f"{len(cells)} cells, the header has {len(header)}"
            yield number, _filled(header, cells) if same else wrong


def _headed(path: Path, quoting: Any, delimiter: str = ",") -> tuple[list[str], list[str], int]:
    """(lines, header, place of the line after it)."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    text = _decode(_bytes(path))
    if "\n" not in text:  # lines that end as they once did on a Macintosh
        text = text.replace("\r", "\n")
    lines = [line.rstrip("\r") + "\n" for line in text.split("\n")]
    with guarded(f"{path}: the header is malformed"):
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        header = [name.strip() for name in next(reader, [])]
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

    with guarded(f"{path} is not a readable Parquet file"):
        table = pyarrow.parquet.ParquetFile(path).read()
    for number, row in enumerate(table_rows(table), 1):
        yield number, row if isinstance(row, str) else {key: without_nulls(value) for key, value in known(row).items()}


def class_names(path: Path) -> dict[str, list[str]]:
    """Names of the integer labels by column, which `datasets` writes into the schema of a Parquet file."""
    if path.suffix.lower() != ".parquet":
        return {}
    import pyarrow.parquet

    with guarded(f"{path} is not a readable Parquet file"):
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {str(column): _named(feature) for column, feature in features.items()}
    except Exception:  # of another writer, which means something else by it
        return {}
    return {column: names for column, names in found.items() if names}


def _named(feature: Any) -> list[str]:
    """The names of a feature that is a class label, or a list of them."""
    inner = feature[0] if isinstance(feature, list) and feature else feature
    inner = inner.get("feature", inner) if isinstance(inner, dict) else {}
    return list(map(str, inner.get("names") or ())) if inner.get("_type") == "ClassLabel" else []


def _by_row(read: Callable[[Path], Iterator[Numbered]]) -> Callable[[Path, str], Table]:
    return lambda path, split: _parted(path, read(path))


READERS: dict[str, Callable[[Path, str], Table]] = {
    ".jsonl": _by_row(read_jsonl),
    ".json": read_json,
    ".csv": _by_row(read_csv),
    ".tsv": _by_row(read_tsv),
    ".parquet": _by_row(read_parquet),
    ".txt": _by_row(read_text),
    ".md": _by_row(read_text),
}
"""Reader of each suffix: of a file, and the split that is asked for."""
