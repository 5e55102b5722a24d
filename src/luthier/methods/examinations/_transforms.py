"""Transforms of a text with their inverses: by name, from a table of words, or from a Python file of the user's."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded
from luthier.core.json_text import loads
from luthier.core.paths import path_of
from luthier.core.user_function import names_in

Text = Callable[[str], str]
WORD = re.compile(r"\w+")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROT13 = str.maketrans(
    LETTERS + LETTERS.upper(), LETTERS[13:] + LETTERS[:13] + LETTERS[13:].upper() + LETTERS[:13].upper()
)
LEET = {"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7"}


@dataclass(frozen=True)
class Transform:
    """A change of a text, and the one that undoes it."""

    there: Text
    back: Text


def _swapped(text: str) -> str:
    """Digits that stand for letters change places with them, so that it undoes itself on lower-case text."""
    pairs = {**LEET, **{to: of for of, to in LEET.items()}}
    return text.translate(str.maketrans(pairs))


def _pig(text: str) -> str:
    return re.sub(r"[A-Za-z]+", lambda word: f"{word[0][1:]}{word[0][0]}ay", text)


def _unpig(text: str) -> str:
    return re.sub(r"([A-Za-z]*)([A-Za-z])ay\b", r"\2\1", text)


def _from_json(text: str) -> str:
    try:
        found = json.loads(text.strip())
    except (ValueError, RecursionError):
        return text
    value = found.get("answer", next(iter(found.values()), "")) if isinstance(found, dict) else found
    return value if isinstance(value, str) else json.dumps(value)


NAMED: Mapping[str, Transform] = {
    "identity": Transform(str, str),
    "reverse": Transform(lambda text: text[::-1], lambda text: text[::-1]),
    "rot13": Transform(lambda text: text.translate(ROT13), lambda text: text.translate(ROT13)),
    "swapcase": Transform(str.swapcase, str.swapcase),
    "spaced": Transform(" ".join, lambda text: text[::2]),
    "leet": Transform(_swapped, _swapped),
    "pig_latin": Transform(_pig, _unpig),
    "json": Transform(lambda text: json.dumps({"question": text}, ensure_ascii=False), _from_json),
    "quote": Transform(lambda text: f"> {text}\n\nAnswer:", lambda text: text.strip().removeprefix("> ").strip()),
}
"""Ciphers and formats by name."""


def transform_of(name: str) -> Transform:
    """Returns a transform: a name of `NAMED`, a table of words (.csv, .tsv, .json) or a .py file that defines
    `transform(text)` and `inverse(text)`. Raises `LuthierError` for what is none, and for tables without an inverse."""
    file = path_of(name)
    if name in NAMED:
        return NAMED[name]
    if file.suffix not in (".py", ".csv", ".tsv", ".json"):
        raise LuthierError(
            f"no transform {name!r}{near(name, NAMED)} There are: {', '.join(NAMED)}; or a table (.csv, .tsv, .json) "
            "of words, or a .py file with transform(text) and inverse(text)."
        )
    if not file.is_file():
        raise LuthierError(f"there is no file {file} to take a transform from.")
    return _written(file) if file.suffix == ".py" else _table(file)


def _written(file: Path) -> Transform:
    """The functions of a Python file, each guarded: what they raise is told with the file."""
    names = names_in(file)
    for wanted in ("transform", "inverse"):
        if not callable(names.get(wanted)):
            raise LuthierError(f"{file} defines no function {wanted}(text); expected transform and inverse.")
    return Transform(_guarded(file, names["transform"]), _guarded(file, names["inverse"]))


def _guarded(file: Path, function: Callable[[str], Any]) -> Text:
    def call(text: str) -> str:
        with guarded(f"{file}: {function.__name__} fails on {text[:40]!r}"):
            found = function(text)
        if not isinstance(found, str):
            raise LuthierError(f"{file}: {function.__name__} gives {type(found).__name__}; expected a text.")
        return found

    return call


def _table(file: Path) -> Transform:
    with guarded(f"{file} is not a table of words"):
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".json":
            found = loads(text).items()
        else:
            lines = csv.reader(text.splitlines(), delimiter="\t" if file.suffix == ".tsv" else ",")
            found = [(of, to) for of, to in lines]
        words = {of.strip().lower(): to.strip().lower() for of, to in found}
    undone = {to: of for of, to in words.items()}
    if not words or len(undone) != len(words):
        raise LuthierError(f"{file} has no inverse: two words become the same, or it is empty. Give each its own.")
    return Transform(_replacing(words), _replacing(undone))


def _replacing(words: Mapping[str, str]) -> Text:
    """Whole words are replaced; one that began with a capital begins with one."""

    def word(found: re.Match) -> str:
        to = words.get(found[0].lower())
        return found[0] if to is None else to.capitalize() if found[0][0].isupper() else to

    return lambda text: WORD.sub(word, text)
