"""Rows that are held in memory, written down: a run that is to be resumed or repeated is trained on a file."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.cached import ELSEWHERE
from luthier.core.errors import LuthierError
from luthier.core.files import cache_root, committed
from luthier.core.guard import on_disk

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

    Rows = str | Path | Sequence[Mapping[str, Any]] | DataFrame | Dataset

FOLDER = "rows"
"""Below the cache: a file or folder for each set of rows, by its content."""


def source_of(rows: Rows) -> str:
    """The source that holds `rows`: what is one already, else a file (JSON lines) or folder in `$LUTHIER_CACHE/rows`.

    Rows are dictionaries in a sequence, a DataFrame of pandas, or a Dataset of Hugging Face's `datasets`. Raises
    `LuthierError` for anything else, and for values that JSON cannot hold.
    """
    if isinstance(rows, str | os.PathLike):
        return str(rows)
    if _is(rows, "pandas", "DataFrame"):
        table: Any = rows
        return _kept(table.to_json(orient="records", lines=True, date_format="iso", force_ascii=False))
    if _is(rows, "datasets", "Dataset"):
        return _saved(rows)
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise LuthierError(
            f"data is {_kind(rows)}; expected a source (a file, a folder, a hub id, gym:<task>), dictionaries in a "
            "list, a DataFrame of pandas, or a Dataset of datasets (of a DatasetDict, one of its splits)."
        )
    return _kept("".join(_line(number, row) for number, row in enumerate(rows, 1)))


def _is(value: Any, library: str, name: str) -> bool:
    """Whether `value` is of a library's class, which is not loaded to find out."""
    module = sys.modules.get(library)
    return module is not None and isinstance(value, getattr(module, name))


def _kind(rows: Any) -> str:
    found = type(rows).__name__
    other = next((type(row).__name__ for row in rows if not isinstance(row, Mapping)), "") if _listed(rows) else ""
    return f"{found} of {other}" if other else found


def _listed(rows: Any) -> bool:
    return isinstance(rows, Sequence) and not isinstance(rows, bytes)


def _line(number: int, row: Mapping[str, Any]) -> str:
    for column, value in row.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise LuthierError(
                f"row {number}: {column} holds {type(value).__name__}, which no file of rows can; give text, numbers, "
                "lists and dictionaries (of pictures and sounds, the paths of their files), or a Dataset of datasets."
            ) from None
    return json.dumps(dict(row), ensure_ascii=False) + "\n"


def _kept(text: str) -> str:
    """The file with these lines, written once."""
    content = text.encode()
    path = cache_root() / FOLDER / f"{hashlib.sha256(content).hexdigest()[:32]}.jsonl"
    if not path.is_file():
        with on_disk(str(path), ELSEWHERE):
            path.parent.mkdir(parents=True, exist_ok=True)
            _written_once(path, content)
    return str(path)


def _written_once(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _saved(rows: Any) -> str:
    """The folder of a Dataset, by the fingerprint that `datasets` gives it."""
    folder = cache_root() / FOLDER / rows._fingerprint
    if not folder.is_dir():
        with committed(folder, ELSEWHERE) as temporary:
            rows.save_to_disk(str(temporary))
    return str(folder)
