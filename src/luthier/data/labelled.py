"""Layouts of rows whose answers are labels: of a text, its words or places in it, and of texts that belong together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from luthier.data.bad import BadRow
from luthier.data.table import Row, empty
from luthier.data.turns import checked, decoded, kind

TRUTHS = ("True", "False", "TRUE", "FALSE")
"""How pandas and Excel write what JSON writes as true and false."""


def text_of(row: Row, column: str) -> str:
    """The string in a column, not empty and valid Unicode."""
    value = row.get(column)
    if value is None:
        raise BadRow(f"no {column!r}")
    return checked(value, column)


def labelled(row: Row, folder: Path | None) -> Row:
    """`text`, `label`."""
    if row.get("label") is None:
        raise BadRow("no 'label' (texts are learned without any by --task causal-lm)")
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


def transcribed(row: Row, folder: Path | None) -> Row:
    """`audio` and `text`, what is said in it, and an optional `language`."""
    language = {} if empty(row.get("language")) else {"language": text_of(row, "language")}
    return {"audio": _file(row, "audio", folder), "answer": text_of(row, "text"), **language}


def label_of(row: Row) -> str | int | float:
    """The label as it stands; NaN, infinities, null and empty strings are refused."""
    value = row.get("label")
    if value is None:
        raise BadRow("no 'label'")
    if isinstance(value, str):
        if isinstance(decoded(value), list):
            raise BadRow(f"'label' is a list written as text ({value[:40]!r}); several classes stand in 'labels'")
        return value.lower() if value in TRUTHS else checked(value, "label")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"label is {value}")
    if not isinstance(value, int | float):
        raise BadRow(f"'label' is {kind(value)}, expected a string or a number")
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


def several(row: Row, folder: Path | None) -> Row:
    """`text` and an optional `text_pair`, with `labels`: a list of classes, which may be empty."""
    pair = {} if row.get("text_pair") is None else {"text_pair": text_of(row, "text_pair")}
    found = names_of(row, "labels")
    if twice := [each for each in found if found.count(each) > 1]:
        raise BadRow(
            f"'labels' holds {twice[0]} more than once; expected the classes that the text has, by name or number"
        )
    return {"text": text_of(row, "text"), "labels": found, **pair}


def tagged(row: Row, folder: Path | None) -> Row:
    """`tokens`, the words of a text, and `tags`, one for each."""
    tokens, tags = decoded(row.get("tokens")), names_of(row, "tags")
    if not isinstance(tokens, list) or not tokens:
        raise BadRow(f"'tokens' is {kind(tokens)}, expected a list of words" if tokens else "no 'tokens'")
    words = tuple(checked(word, "tokens") for word in tokens)
    if len(words) != len(tags):
        raise BadRow(f"{len(words)} tokens and {len(tags)} tags; expected one tag for each")
    return {"tokens": words, "labels": tags}


def names_of(row: Row, column: str) -> tuple[Any, ...]:
    """The classes in a list, as they stand: strings or whole numbers."""
    value = decoded(row.get(column))
    if value is None:
        raise BadRow(f"no {column!r}")
    found = [] if value == "" else value
    if not isinstance(found, list):
        raise BadRow(f"{column!r} is {kind(value)}, expected a list of classes")
    if wrong := [each for each in found if not isinstance(each, str | int) or isinstance(each, bool)]:
        raise BadRow(f"{column!r} holds {kind(wrong[0])}, expected strings or whole numbers")
    return tuple(checked(each, column) if isinstance(each, str) else each for each in found)


def extractive(row: Row, folder: Path | None) -> Row:
    """`question`, `context` and `answers` that stand in it: SQuAD's `{"text": […], "answer_start": […]}`, or a list of
    `{"text", "answer_start"}`. Without any, the question has no answer there."""
    context = text_of(row, "context")
    return {"text": text_of(row, "question"), "text_pair": context, "spans": _spans(row.get("answers"), context)}


def _spans(value: Any, context: str) -> tuple[tuple[int, str], ...]:
    found = decoded(value)
    if empty(found):
        return ()
    if isinstance(found, dict) and isinstance(found.get("text"), list):
        starts = found.get("answer_start")
        if not isinstance(starts, list) or len(starts) != len(found["text"]):
            raise BadRow("'answers' has texts without an 'answer_start' for each")
        found = [{"text": text, "answer_start": at} for text, at in zip(found["text"], starts, strict=True)]
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadRow(f"'answers' is {kind(value)}, expected an object of lists 'text' and 'answer_start'")
    return tuple(dict.fromkeys(_span(each, context) for each in found))


def _span(answer: Row, context: str) -> tuple[int, str]:
    text, start = checked(answer.get("text"), "answers"), answer.get("answer_start")
    if type(start) is not int or context[start : start + len(text)] != text or start < 0:
        raise BadRow(f"the answer {text[:40]!r} does not stand in the context at its 'answer_start' ({start})")
    return start, text


def compared(row: Row, folder: Path | None) -> Row:
    """`anchor` and `positive`, texts that belong near each other, and `negative`, one or a list that do not."""
    others = decoded(row.get("negative"))
    others = [] if empty(others) else others if isinstance(others, list) else [others]
    texts = [text_of(row, "anchor"), text_of(row, "positive"), *(checked(each, "negative") for each in others)]
    return {"texts": tuple(texts)}
