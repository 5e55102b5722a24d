"""A pool of rows that arrive over time, kept in a folder: new rows join, redundant ones leave for good."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import committed
from luthier.core.paths import path_of
from luthier.core.records import read_json, read_text, write_json
from luthier.data.sources import read
from luthier.data.table import with_class_names

ROWS, STATE = "rows.jsonl", "state.json"


@dataclass
class Arrived:
    """The rows that are there now, while the folder is being written."""

    file: Path
    """JSON lines of the rows kept so far and the new ones behind them."""
    new: int
    """How many came with this source."""
    left: int
    """How many stay."""
    dropped: list[int] = field(default_factory=list)

    def drop(self, numbers: Iterable[int]) -> None:
        """Removes rows, by their number in the file from 1, for good."""
        gone = set(numbers)
        lines = read_text(self.file).splitlines(keepends=True)
        self.file.write_text("".join(line for i, line in enumerate(lines, 1) if i not in gone), encoding="utf-8")
        self.left, self.dropped = len(lines) - len(gone), sorted(gone)


@contextmanager
def arriving(folder: str | Path, source: str) -> Iterator[Arrived]:
    """The rows of the pool in `folder` with those of `source`, which join it when the block ends well.

    A row that is there word for word, or was when it was found redundant, does not join again; so a source may be given
    twice. Raises `LuthierError` for a folder that holds something else and for rows that are not text.
    """
    place = path_of(folder)
    state = _state(place)
    held = read_text(place / ROWS).splitlines() if state["pools"] else []
    known = {*held, *state["redundant"]}
    fresh = [line for line in dict.fromkeys(_lines(source)) if line not in known]
    if not held and not fresh:
        raise LuthierError(f"{source} has no rows.")
    with committed(place) as new:
        file = new / ROWS
        file.write_text("".join(line + "\n" for line in [*held, *fresh]), encoding="utf-8")
        arrived = Arrived(file, len(fresh), len(held) + len(fresh))
        yield arrived
        lines = [*held, *fresh]
        gone = [lines[number - 1] for number in arrived.dropped]
        told = {"source": source, "new": len(fresh), "redundant": len(gone), "kept": arrived.left}
        write_json(new / STATE, {"pools": [*state["pools"], told], "redundant": [*state["redundant"], *gone]})


def _state(folder: Path) -> dict[str, Any]:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)  # an empty one is replaced as a whole
        return {"pools": [], "redundant": []}
    if not (folder / STATE).is_file() or not (folder / ROWS).is_file():
        raise LuthierError(f"{folder} holds something else than a pool of rows; name a new folder (state).")
    state = read_json(folder / STATE)
    pools, redundant = (state.get(key) if isinstance(state, dict) else None for key in ("pools", "redundant"))
    if not (isinstance(pools, list) and isinstance(redundant, list) and all(isinstance(row, str) for row in redundant)):
        raise LuthierError(f"{folder / STATE} does not describe a pool of rows; name a new folder (state).")
    return state


def _lines(source: str) -> Iterator[str]:
    table = read(source, "train")
    if table.bad:
        row, reason = table.bad[0]
        raise LuthierError(f"{source}: row {table.place(row)} cannot be read: {reason}.")
    for number, row in table.rows:
        try:
            yield json.dumps(with_class_names(row, table), ensure_ascii=False)
        except TypeError as error:
            raise LuthierError(f"{source}: row {number} cannot be kept as JSON ({error}); give rows of text.") from None
