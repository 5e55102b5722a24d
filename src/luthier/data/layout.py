"""Layouts: which columns mean what. One small function a layout; a table finds them by their
columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.contracts.example import Message, last_answer
from luthier.core.errors import LuthierError, near
from luthier.data.bad import BadRow
from luthier.data.read import Row

ROLES = ("system", "developer", "user", "assistant", "tool")
GENERATIVE = ("causal-lm", "seq2seq")


@dataclass(frozen=True)
class Layout:
    """`parse(row, folder)` turns the columns into the fields of an `Example`, or raises
    `BadRow`."""

    needs: tuple[str, ...]
    """Columns that every row must have."""
    tasks: tuple[str, ...]
    """Tasks that such rows serve; the first is the default."""
    parse: Callable[[Row, Path | None], dict[str, Any]]
    also: tuple[str, ...] = ()
    """Columns that are read when they are there; all others are ignored."""


def text_of(row: Row, column: str) -> str:
    """The string in a column, not empty and valid Unicode."""
    value = row.get(column)
    if value is None:
        raise BadRow(f"no {column!r}")
    return _checked(value, column)


def _checked(value: Any, what: str, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{what!r} is {_kind(value)}, expected a string")
    if not value.strip() and not empty:
        raise BadRow(f"empty {what!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{what!r} is not valid UTF-8") from None
    return value


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "null" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _turns(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadRow(f"{column!r} is {_kind(value)}, expected a list of {{'role', 'content'}}")
    if not value:
        raise BadRow(f"empty {column!r}")
    return [_turn(message, f"{column}[{i}]") for i, message in enumerate(value)]


def _turn(message: Any, what: str) -> Message:
    if not isinstance(message, dict):
        raise BadRow(f"{what!r} is {_kind(message)}, expected {{'role', 'content'}}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise BadRow(f"{what} has the unknown role {role!r}; expected one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = "".join(_part(part, what) for part in content)
    calls = role == "assistant" and bool(message.get("tool_calls"))
    if content is None and calls:
        return dict(message)
    if content is None:
        raise BadRow(f"{what} has no 'content'")
    may_be_empty = calls or role in ("system", "tool")
    name = "answer" if role == "assistant" else f"{what}.content"
    return {**message, "content": _checked(content, name, empty=may_be_empty)}


def _part(part: Any, what: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        raise BadRow(f"{what} holds a part that is not text")
    return part["text"]


def _conversation(messages: list[Message], context: int = 0, answer: str | None = None) -> Row:
    if all(m["role"] != "assistant" for m in messages[context:]):
        raise BadRow("no assistant turn: nothing to learn")
    answer = answer or messages[last_answer(messages)].get("content")
    return {"messages": messages, "context": context, "answer": answer}


def _asked(prompt: str, answer: str, reference: str | None = None) -> Row:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return _conversation(turns, answer=reference)


def chat(row: Row, folder: Path | None) -> Row:
    """`messages`: a list of {role, content}; every assistant turn is an answer."""
    return _conversation(_turns(row.get("messages"), "messages"))


def prompt_completion(row: Row, folder: Path | None) -> Row:
    """`prompt`, `completion`: strings, or lists of messages of which the completion's answers are
    learned."""
    if isinstance(row.get("prompt"), list):
        before = _turns(row["prompt"], "prompt")
        after = row.get("completion")
        if isinstance(after, str):
            after = [{"role": "assistant", "content": after}]
        return _conversation(before + _turns(after, "completion"), context=len(before))
    return _asked(text_of(row, "prompt"), text_of(row, "completion"))


def instruction(row: Row, folder: Path | None) -> Row:
    """`instruction`, `output`, and an `input` that follows the instruction after an empty line.

    An `answer` column is the reference to score with (LLM-Adapters' files); it also stands in for
    an empty output.
    """
    prompt = text_of(row, "instruction")
    if row.get("input"):
        prompt += "\n\n" + text_of(row, "input")
    reference = row.get("answer")
    reference = None if reference in (None, "") else str(reference)
    if reference is not None and row.get("output") in (None, ""):
        return _asked(prompt, reference)
    return _asked(prompt, text_of(row, "output"), reference)


def question(row: Row, folder: Path | None) -> Row:
    """`question`, `answer`."""
    return _asked(text_of(row, "question"), text_of(row, "answer"))


def source_target(row: Row, folder: Path | None) -> Row:
    """`source`, `target`: a pair to translate or summarise."""
    return _asked(text_of(row, "source"), text_of(row, "target"))


def plain(row: Row, folder: Path | None) -> Row:
    """`text` alone: every token is learned."""
    return {"text": text_of(row, "text")}


def labelled(row: Row, folder: Path | None) -> Row:
    """`text`, `label`."""
    return {"text": text_of(row, "text"), "label": label_of(row)}


def labelled_pair(row: Row, folder: Path | None) -> Row:
    """`text`, `text_pair`, `label`."""
    return {**labelled(row, folder), "text_pair": text_of(row, "text_pair")}


def labelled_image(row: Row, folder: Path | None) -> Row:
    """`image`, `label`: a path from the data file's folder, or the picture itself."""
    return {"image": _file(row, "image", folder), "label": label_of(row)}


def labelled_audio(row: Row, folder: Path | None) -> Row:
    """`audio`, `label`: a path from the data file's folder, or the sound itself."""
    return {"audio": _file(row, "audio", folder), "label": label_of(row)}


def label_of(row: Row) -> str | int | float:
    """The label as it stands; NaN, infinities, null and empty strings are refused."""
    value = row.get("label")
    if value is None:
        raise BadRow("no 'label'")
    if isinstance(value, str):
        return _checked(value, "label")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"label is {value}")
    if not isinstance(value, int | float):
        raise BadRow(f"'label' is {_kind(value)}, expected a string or a number")
    return str(value).lower() if isinstance(value, bool) else value


def _file(row: Row, column: str, folder: Path | None) -> Any:
    value = row.get(column)
    if value is None:
        raise BadRow(f"no {column!r}")
    if not isinstance(value, str):
        return value
    path = (folder or Path()) / text_of(row, column)
    if not path.is_file():
        raise BadRow(f"no {column} file {path}")
    return str(path)


LAYOUTS: dict[str, Layout] = {
    "messages": Layout(("messages",), GENERATIVE, chat),
    "prompt-completion": Layout(("prompt", "completion"), GENERATIVE, prompt_completion),
    "instruction": Layout(("instruction", "output"), GENERATIVE, instruction, ("input", "answer")),
    "question-answer": Layout(("question", "answer"), GENERATIVE, question),
    "source-target": Layout(("source", "target"), GENERATIVE, source_target),
    "text": Layout(("text",), ("causal-lm",), plain),
    "text-label": Layout(("text", "label"), ("classification", "regression"), labelled),
    "text-pair-label": Layout(("text", "text_pair", "label"), ("classification", "regression"), labelled_pair),
    "image-label": Layout(("image", "label"), ("image-classification",), labelled_image),
    "audio-label": Layout(("audio", "label"), ("audio-classification",), labelled_audio),
}
"""Every layout, by name."""


def recognise(rows: Iterable[Row], source: str, task: str | None = None) -> str:
    """Name of the one layout whose columns the rows have (a column counts when half of the rows
    have it).

    Of two layouts that fit, one of which needs all that the other needs and more, the fuller one
    is meant. `task` leaves only the layouts that serve it. No layout, or several, raises and lists
    the columns and the layouts.
    """
    rows = list(rows)
    counts = Counter(column for row in rows for column in row)
    columns = {c for c, n in counts.items() if 2 * n >= len(rows)}
    fits = {
        name: set(layout.needs)
        for name, layout in LAYOUTS.items()
        if columns.issuperset(layout.needs) and (task is None or task in layout.tasks)
    }
    best = [a for a in fits if not any(fits[a] < fits[b] for b in fits)]
    if len(best) == 1:
        return best[0]
    purpose = f" for {task}" if task else ""
    found = f"{source} has the columns {', '.join(sorted(columns)) or '(none)'}"
    known = "; ".join(f"{name}: {' + '.join(layout.needs)}" for name, layout in LAYOUTS.items())
    if best:
        raise LuthierError(
            f"{found}, which fit several layouts{purpose}: {', '.join(best)}. Remove or rename the columns that are "
            f"not meant. Layouts: {known}."
        )
    raise LuthierError(f"{found}, which fit no layout{purpose}{_missing(columns)} Layouts: {known}.")


def _missing(columns: set[str]) -> str:
    """What the nearest layout lacks."""
    shared = {name: columns & set(layout.needs) for name, layout in LAYOUTS.items()}
    name = max(shared, key=lambda n: (len(shared[n]), -len(LAYOUTS[n].needs)))
    if not shared[name] or shared[name] == set(LAYOUTS[name].needs):
        return "."
    lacking = [c for c in LAYOUTS[name].needs if c not in columns]
    hints = "".join(near(c, columns) for c in lacking) or "."
    return f": {name} lacks {', '.join(map(repr, lacking))}{hints}"
