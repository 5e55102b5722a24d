"""Names of columns: those that the user maps, those that nothing reads, those that were probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from luthier.core.errors import LuthierError, near
from luthier.core.lazy import mapped
from luthier.data.table import Row, empty, present
from luthier.data.turns import ROW_FLAGS, decoded, flag, keys

ALIKE = {
    "messages": ("conversation", "conversations", "dialog", "dialogue", "turns", "chat", "items", "chosen"),
    "prompt": ("query", "question", "input", "instruction", "problem", "user", "request"),
    "completion": ("response", "answer", "output", "solution", "assistant", "target", "reply", "chosen", "answers"),
    "instruction": ("prompt", "query", "question", "task"),
    "output": ("response", "completion", "answer", "target", "solution"),
    "question": ("query", "problem", "prompt", "input"),
    "answer": ("answers", "response", "solution", "output", "final_answer"),
    "source": ("input", "src", "article", "document", "dialogue", "en"),
    "target": ("output", "tgt", "summary", "highlights", "translation"),
    "text": ("body", "content", "sentence", "sentence1", "premise", "review", "document", "article", "raw", "tweet"),
    "text_pair": ("sentence2", "hypothesis", "question2", "passage", "context"),
    "label": ("labels", "class", "category", "target", "intent", "sentiment", "score", "stars", "rating", "topic"),
    "labels": ("classes", "categories", "tags", "topics", "genres", "emotions"),
    "tokens": ("words", "sentence"),
    "tags": ("ner_tags", "labels", "ner", "bio", "pos_tags"),
    "context": ("passage", "paragraph", "document", "text"),
    "answers": ("answer",),
    "anchor": ("query", "question", "sentence1", "sentence_A"),
    "positive": ("pos", "passage", "document", "sentence2", "sentence_B", "answer"),
    "image": ("img", "file_name", "image_path", "picture", "path"),
    "audio": ("file", "file_name", "audio_path", "path", "wav"),
}
"""What other files call a column."""


def mapping(text: str | Mapping[str, str] | None) -> dict[str, str]:
    """Returns `text=body,label=category` as `{"text": "body", "label": "category"}`."""
    if text is None or isinstance(text, Mapping):
        return dict(text or {})
    pairs = [each.partition("=") for each in text.split(",")]
    found = {name.strip(): column.strip() for name, _, column in pairs}
    if not all(name and column for name, column in found.items()) or len(found) < len(pairs):
        raise LuthierError(f"columns is {text!r}; expected name=column,name=column, such as text=body,label=category.")
    twice = sorted({column for column in found.values() if list(found.values()).count(column) > 1})
    if twice:
        raise LuthierError(f"columns gives {', '.join(twice)} two meanings; a column has one.")
    return found


def renamed(
    rows: Sequence[tuple[int, Row]], named: Mapping[str, str], known: Collection[str], source: str
) -> tuple[Sequence[tuple[int, Row]], list[str]]:
    """Renames columns: (rows with the names that layouts know, columns that had to make room).

    A name whose column the rows lack is passed over where they have the name itself (as evaluation data may).
    """
    for name in named:
        if name not in known:
            raise LuthierError(f"columns: nothing reads {name!r}{near(name, known)} Names are: {', '.join(known)}.")
    there = present(rows)
    missing = [(name, column) for name, column in named.items() if column not in there and name not in there]
    if missing:
        name, column = missing[0]
        hint = near(column, there)
        raise LuthierError(
            f"{source} has no column {column!r}, which is to be {name}{hint} It has: {', '.join(there)}."
        )
    used = {column: name for name, column in named.items() if column in there}
    if not used:
        return rows, []
    gone = [name for name in used.values() if name in there and name not in used]
    told = [f"{name} (another column is it)" for name in gone]
    return mapped(rows, lambda numbered: (numbered[0], _named(numbered[1], used, gone))), told


def _named(row: Row, used: Mapping[str, str], gone: Collection[str]) -> Row:
    return {used.get(column, column): value for column, value in row.items() if column not in gone}


def unread(rows: Iterable[Row], read: Collection[str], conversations: Collection[str]) -> list[str]:
    """Columns that hold something and are not read, then the keys of turns that only a template may read."""
    columns: dict[str, None] = {}
    inner: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(
            c
            for c, value in row.items()
            if c not in read and c not in columns and not empty(value) and not _is_flag(c, value, conversations)
        )
        for column in conversations:
            if isinstance(row.get(column), list | str):
                inner |= dict.fromkeys(f"{column}[].{key}" for key in keys(row[column]))
    return [*columns, *inner]


def _is_flag(column: str, value: Any, conversations: Collection[str]) -> bool:
    """Whether a cell says what is learned: of the row, or of each of its turns."""
    if column not in ROW_FLAGS:
        return False
    return flag(value) is not None or bool(conversations and isinstance(decoded(value), list))


def guesses(lacking: Iterable[str], columns: Iterable[str]) -> dict[str, str]:
    """Guesses {name: the column that was probably meant by it}, each column once."""
    free = {column.lower(): column for column in columns}
    found: dict[str, str] = {}
    for name in lacking:
        other = next((each for each in ALIKE.get(name, ()) if each in free), None) or _nearest(name, free)
        if other is not None:
            found[name] = free.pop(other)
    return found


def suggestion(found: Mapping[str, str]) -> str:
    """Returns `; did you mean …?` with the flag that says it."""
    meant = " and ".join(map(repr, found.values()))
    return f"; did you mean {meant}? Say so: --columns {','.join(f'{n}={c}' for n, c in found.items())}."


def _nearest(name: str, columns: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(columns), 1, 0.7)), None)
