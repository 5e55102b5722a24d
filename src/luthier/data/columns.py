"""Names of columns: those that the user maps, those that nothing reads, those that were probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from luthier.core.errors import LuthierError, near
from luthier.core.lazy import mapped
from luthier.data.table import Row, empty, present
from luthier.data.turn_keys import keys
from luthier.data.turns import ROW_FLAGS, decoded, flag, is_turn

ALIKE = {
    "messages": ("conversation", "conversations", "dialog", "dialogue", "turns", "chat", "items", "chosen"),
    "prompt": ("query", "question", "input", "instruction", "problem", "user", "request"),
    "completion": ("response", "answer", "output", "solution", "assistant", "target", "reply", "chosen", "answers"),
    "instruction": ("prompt", "query", "question", "task"),
    "output": ("response", "completion", "answer", "target", "solution"),
    "question": ("query", "problem", "prompt", "input"),
    "answer": ("answers", "response", "solution", "output", "final_answer"),
    "source": ("input", "src", "article", "document", "dialogue", "en"),
    "target": ("output", "tgt", "summary", "highlights", "translation", "de", "fr", "es", "ru", "zh"),
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
    inner = {column for column in named.values() if column not in there and _inside(rows, column)}
    missing = [(n, c) for n, c in named.items() if c not in there and c not in inner and n not in there]
    if missing:
        name, column = missing[0]
        hint = near(column, {**there, **{way: None for _, row in rows[:1] for way in ways(row)}})
        raise LuthierError(
            f"{source} has no column {column!r}, which is to be {name}{hint} It has: {', '.join(there)}."
        )
    used = {column: name for name, column in named.items() if column in there or column in inner}
    if not used:
        return rows, []
    gone = [name for name in used.values() if name in there and name not in used]
    told = [f"{each} (another column is it)" for name in gone for each in _replaced(rows, name, named[name], inner)]
    return mapped(rows, lambda numbered: (numbered[0], _named(numbered[1], used, gone, inner))), told


def _named(row: Row, used: Mapping[str, str], gone: Collection[str], inner: Collection[str]) -> Row:
    left, taken = row, {}
    for column in inner:
        taken[used[column]], left = _taken(left, column)
    return {used.get(column, column): value for column, value in left.items() if column not in gone} | taken


def _replaced(rows: Sequence[tuple[int, Row]], name: str, column: str, inner: Collection[str]) -> list[str]:
    """What is not read of a column that makes room: all of it, or what its objects hold beside what is taken."""
    if column not in inner or column.partition(".")[0] != name:
        return [name]
    left = (_without(row, inner).get(name) for _, row in rows)
    return list(dict.fromkeys(each for value in left for each in _filled(value, name)))


def _without(row: Row, inner: Collection[str]) -> Row:
    for column in inner:
        _, row = _taken(row, column)
    return row


def _filled(value: Any, way: str) -> list[str]:
    """The ways to all that an object holds."""
    if not isinstance(value, dict):
        return [] if empty(value) else [way]
    return [each for key, held in value.items() for each in _filled(held, f"{way}.{key}")]


def _inside(rows: Sequence[tuple[int, Row]], column: str) -> bool:
    """Whether a name with points (`translation.en`) is the way to a value within some row's object."""
    return "." in column and any(_taken(row, column)[0] is not None for _, row in rows)


def _taken(row: Row, column: str) -> tuple[Any, Row]:
    """(what a way of names leads to, the row without it); None where it leads nowhere."""
    head, _, rest = column.partition(".")
    held = decoded(row.get(head)) if rest and column not in row else None
    if not isinstance(held, dict):
        return row.get(column), {name: value for name, value in row.items() if name != column}
    value, left = _taken(held, rest)
    return value, {**row, head: left}


def ways(row: Row) -> dict[str, Any]:
    """Returns {column: value} of a row and, by ways with points, of the objects in it."""
    objects = {column: held for column, value in row.items() if isinstance(held := decoded(value), dict)}
    inner = {column: held for column, held in objects.items() if not is_turn(held)}
    if len(inner) > 1:  # which of them is meant, nothing tells
        return dict(row)
    return row | {f"{column}.{way}": each for column, held in inner.items() for way, each in ways(held).items()}


def unread(
    rows: Iterable[Row],
    read: Collection[str],
    conversations: Collection[str],
    within: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Columns that hold something and are not read, then the keys of turns that only a template may read.

    `within` are columns that are objects, with the keys that are read, of which the first holds turns.
    """
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
        for column, known in (within or {}).items():
            if isinstance(held := decoded(row.get(column)), dict):
                inner |= dict.fromkeys(f"{column}.{key}" for key in held if key not in known and not empty(held[key]))
                inner |= dict.fromkeys(f"{column}.{known[0]}[].{key}" for key in keys(held.get(known[0])))
    return [*(column or NAMELESS for column in columns), *inner]


NAMELESS = "a column without a name"


def _is_flag(column: str, value: Any, conversations: Collection[str]) -> bool:
    """Whether a cell says what is learned: of the row, or of each of its turns."""
    if column not in ROW_FLAGS:
        return False
    return flag(value) is not None or bool(conversations and isinstance(decoded(value), list))


def guesses(lacking: Iterable[str], columns: Iterable[str]) -> dict[str, str]:
    """Guesses {name: the column that was probably meant by it}, each column once."""
    free: dict[str, str] = {}
    for column in sorted(columns, key=lambda each: each.count(".")):  # a column of the row is meant before an inner one
        free.setdefault(column.lower(), column)
        free.setdefault(column.rpartition(".")[2].lower(), column)
    found: dict[str, str] = {}
    for name in lacking:
        other = next((each for each in (name, *ALIKE.get(name, ())) if each in free), None) or _nearest(name, free)
        if other is not None:
            found[name] = free[other]
            free = {each: column for each, column in free.items() if column != found[name]}
    return found


def suggestion(found: Mapping[str, str]) -> str:
    """Returns `; did you mean …?` with the flag that says it."""
    meant = " and ".join(map(repr, found.values()))
    return f"; did you mean {meant}? Say so: --columns {','.join(f'{n}={c}' for n, c in found.items())}."


def _nearest(name: str, columns: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(columns), 1, 0.7)), None)
