"""Sources: from a file, a folder, a hub id or a gym task to numbered rows of columns."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, near

Row = dict[str, Any]
Numbered = tuple[int, Row | str]
"""(number from 1, the columns) of a good row, (number, reason) of one that cannot be read."""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""First words of file names (up to `-`, `_` or `.`) that tell which split of a folder a file
belongs to."""


@dataclass(frozen=True)
class Table:
    """What a source holds, before its layout is known."""

    rows: list[tuple[int, Row]]
    bad: list[tuple[int, str]] = field(default_factory=list)
    folder: Path | None = None
    """What relative image and audio paths start from."""
    classes: list[str] | None = None
    """Names of integer labels, where the source declares them."""
    starts: list[tuple[int, str]] = field(default_factory=list)
    """(number before the first row, file name) when several files follow one another."""

    def place(self, row: int) -> str:
        """`row` as a person finds it: `part-2.jsonl:17` among several files, else its number."""
        for before, name in reversed(self.starts):
            if row > before:
                return f"{name}:{row - before}"
        return str(row)


def read(source: str, split: str | None = None, limit: int | None = None, seed: int = 0) -> Table:
    """The rows of `source`: a file, a folder of files, `gym:<task>?settings`, a hub id
    (`id:config:split`), or several of these (`mix:<task>=<source>,<task>=<source>`).

    A single file is one split, whatever `split` says; a folder whose file names open with `train`,
    `test`, `dev`, … gives the files of `split` (None: train). `limit` and `seed` reach only
    sources that are generated: reading all of a file costs little and finds all its bad rows.
    Raises `LuthierError` when nothing is there to read.
    """
    if source.startswith("gym:"):
        from luthier.data.gym import read_gym

        return read_gym(source, split or "train", limit, seed)
    if source.startswith("mix:"):
        from luthier.data.mix import read_mix

        return read_mix(source, split, limit, seed)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, split or "train")
    if path.is_file():
        good, bad = _sort(_reader(path)(path))
        return Table(good, bad, path.parent)
    if _looks_like_path(source):
        raise LuthierError(f"no data file {source}{_near_files(path)} Known suffixes: {', '.join(READERS)}.")
    from luthier.data.hub import read_hub

    return read_hub(source, split or "train")


def _sort(rows: Iterator[Numbered]) -> tuple[list[tuple[int, Row]], list[tuple[int, str]]]:
    good: list[tuple[int, Row]] = []
    bad: list[tuple[int, str]] = []
    for number, row in rows:
        if isinstance(row, str):
            bad.append((number, row))
        else:
            good.append((number, row))
    return good, bad


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or Path(source).suffix in READERS or source.count("/") > 1


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}."
    return near(path.name, [p.name for p in path.parent.iterdir()]) or "."


def _reader(path: Path) -> Callable[[Path], Iterator[Numbered]]:
    if path.suffix not in READERS:
        raise LuthierError(f"{path}: cannot read {path.suffix or 'no suffix'!r}. Known: {', '.join(READERS)}.")
    return READERS[path.suffix]


def _folder(folder: Path, split: str) -> Table:
    files = sorted(p for p in folder.iterdir() if p.suffix in READERS and not p.name.startswith("."))
    if not files:
        raise LuthierError(f"{folder} holds no data file. Known suffixes: {', '.join(READERS)}.")
    files = _of_split(folder, files, split)
    good: list[tuple[int, Row]] = []
    bad: list[tuple[int, str]] = []
    starts: list[tuple[int, str]] = []
    before = 0
    for file in files:
        starts.append((before, file.name))
        rows, errors = _sort(_reader(file)(file))
        good += [(before + number, row) for number, row in rows]
        bad += [(before + number, reason) for number, reason in errors]
        before = max([before, *(number for number, _ in good[-1:] + bad[-1:])])
    return Table(good, bad, folder, starts=starts if len(files) > 1 else [])


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """The files of one split. Files without a split's name count as training data when no file has
    one."""
    found: dict[str, list[Path]] = {}
    for file in files:
        word = file.name.replace("-", ".").replace("_", ".").split(".")[0].lower()
        name = next((name for name, words in SPLITS.items() if word in words), "")
        found.setdefault(name, []).append(file)
    if set(found) == {""}:
        found = {"train": files}
    name = next((name for name, words in SPLITS.items() if split in words), split)
    if name not in found:
        raise LuthierError(f"{folder} has no split {split!r}{near(split, found)} Files: {_names(files)}.")
    return found[name]


def _names(files: list[Path]) -> str:
    return ", ".join(p.name for p in files[:20]) + (", …" if len(files) > 20 else "")


def _decode(data: bytes) -> str:
    """Bytes that are not UTF-8 become lone surrogates, which the layouts refuse with the row's
    number."""
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def read_jsonl(path: Path) -> Iterator[Numbered]:
    """One JSON object a line; blank lines are passed over, and counted."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = _decode(line).strip()
            if text:
                yield number, _object(text)


def _object(text: str) -> Row | str:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        return f"invalid JSON: {error}"
    return value if isinstance(value, dict) else f"a JSON {type(value).__name__}, expected an object"


def read_json(path: Path) -> Iterator[Numbered]:
    """A list of objects; a file that does not open with `[` is read as one object a line."""
    text = _decode(path.read_bytes()).strip()
    if not text.startswith("["):
        yield from read_jsonl(path)
        return
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise LuthierError(f"{path} is not valid JSON: {error}.") from None
    for number, value in enumerate(values, 1):
        ok = isinstance(value, dict)
        yield number, value if ok else f"a JSON {type(value).__name__}, expected an object"


def read_csv(path: Path) -> Iterator[Numbered]:
    """Comma-separated, quoted as RFC 4180, with a header; a row's number is the line that it
    starts on."""
    return _delimited(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def read_tsv(path: Path) -> Iterator[Numbered]:
    """Tab-separated with a header and no quoting (IANA text/tab-separated-values): a `"` is a
    plain character."""
    return _delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _delimited(path: Path, delimiter: str, quoting: Any) -> Iterator[Numbered]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = (line.rstrip("\r") + "\n" for line in _decode(path.read_bytes()).split("\n"))
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    header = next(reader, [])
    if len(set(header)) < len(header):
        raise LuthierError(f"{path}: a column occurs twice in the header {header}.")
    start = reader.line_num + 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, f"malformed: {error}"
            return
        if cells:
            same = len(cells) == len(header)
            wrong = f"{len(cells)} cells, the header has {len(header)}"
            yield start, dict(zip(header, cells, strict=True)) if same else wrong
        start = reader.line_num + 1


def read_parquet(path: Path) -> Iterator[Numbered]:
    """Apache Parquet, through pyarrow (which comes with `datasets`)."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise LuthierError(f"{path} is not a readable Parquet file: {error}.") from None
    yield from enumerate(table.to_pylist(), 1)


READERS: dict[str, Callable[[Path], Iterator[Numbered]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
"""Reader of each suffix."""
