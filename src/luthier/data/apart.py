"""Rows as another file may hold them: classes by name, files of pictures and sounds by paths that start at the root."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.data.pictures import ADDRESS, KEYS, is_picture, located
from luthier.data.table import Row, Table, with_class_names
from luthier.data.turns import decoded, held, is_turn

MEDIA = ("image", "images", "audio")
"""Columns that name files."""
SAID = ("content", "value", "parts")
"""Keys of a turn that may hold parts."""


def apart(row: Row, table: Table, named: Mapping[str, str]) -> Row:
    """Returns a row of a table as another file may hold it; `named` says which columns are meant ({audio: path})."""
    start, media = table.folder or Path(), {named.get(each, each) for each in MEDIA}
    return {
        column: absolute(decoded(value), start) if column in media else _in_turns(value, start)
        for column, value in with_class_names(row, table).items()
    }


def absolute(value: Any, start: Path) -> Any:
    """Returns what names pictures or sounds with absolute paths: a path, an object with one, or a list of these.

    Addresses, `data:` URLs and what holds its own bytes stay.
    """
    if isinstance(value, list | tuple):
        return [absolute(each, start) for each in value]
    if isinstance(value, dict) and not value.get("bytes"):
        return {key: _path(each, start) if key in ("path", "url") else each for key, each in value.items()}
    return _path(value, start)


def _path(value: Any, start: Path) -> Any:
    if not isinstance(value, str) or not value or ADDRESS.match(value) or value[:5].lower() == "data:":
        return value
    return str(located(value, start).absolute())


def _in_turns(value: Any, start: Path) -> Any:
    """A cell with absolute paths of the pictures in its turns; written as text where it was."""
    turns = held(value)
    several = turns if isinstance(turns, list) else [turns]
    made = [_turn(each, start) if is_turn(each) else each for each in several]
    if made == several:
        return value
    found = made if isinstance(turns, list) else made[0]
    return json.dumps(found, ensure_ascii=False) if isinstance(value, str) else found


def _turn(turn: Row, start: Path) -> Row:
    return {key: [_part(part, start) for part in each] if key in SAID and isinstance(each, list) else each
            for key, each in turn.items()}  # fmt: skip


def _part(part: Any, start: Path) -> Any:
    if not is_picture(part):
        return part
    return {key: absolute(value, start) if key in KEYS else value for key, value in part.items()}
