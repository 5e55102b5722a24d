"""An example, a set of them, and the ways to divide a set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.lazy import kept, noted
from luthier.core.notebook import figures, shown

Message = dict[str, Any]
LATER = (
    "masked", "tools", "documents", "template", "rejected", "wanted", "labels", "tokens", "spans", "texts", "language",
    "images",
)  # fmt: skip
"""Fields that are in a fingerprint only where a row has them: runs begun before there were such go on."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of data: a conversation, a text, or an input with a label.

    What a layout does not have is None.
    """

    row: int
    """Place in the source, from 1: the line of a JSONL or CSV file, else the number of the row."""
    messages: list[Message] | None = None
    """`{"role", "content"}` turns; the answers are the assistant's."""
    context: int = 0
    """How many leading messages are never in the loss (the prompt of a `prompt`/`completion`
    row)."""
    masked: tuple[int, ...] = ()
    """Indices of assistant messages that the row itself keeps out of the loss (`weight`, `train`,
    `loss_mask` on a turn)."""
    tools: list[dict[str, Any]] | None = None
    """JSON schemas of the functions that the assistant may call, as chat templates take them."""
    documents: list[dict[str, Any]] | None = None
    """Documents to answer from, as chat templates take them."""
    template: dict[str, Any] = field(default_factory=dict)
    """Further variables of the chat template (`chat_template_kwargs`)."""
    text: str | None = None
    """The whole text of a language-modelling row, or the (first) text to classify."""
    text_pair: str | None = None
    label: str | float | None = None
    """A class name, or a number when the task is regression."""
    labels: tuple[str, ...] | None = None
    """The classes of a text that may have several or none, or the tag of each of `tokens`."""
    tokens: tuple[str, ...] | None = None
    """The words of a text whose tags are `labels`."""
    spans: tuple[tuple[int, str], ...] | None = None
    """The (first character, text) of each answer within `text_pair`; empty where it answers the question in `text`
    nowhere."""
    texts: tuple[str, ...] | None = None
    """A text, another that belongs near it, and any number that do not."""
    images: tuple[str, ...] = ()
    """The pictures of a conversation, in the order of their places in its turns: paths, or `data:` URLs."""
    image: Any = None
    """A path, `{"bytes": …}` or a PIL image."""
    audio: Any = None
    """A path, `{"bytes": …}` or `{"array", "sampling_rate"}`."""
    language: str | None = None
    """What is spoken in the sound, by name or code, where a row says so."""
    answer: str | None = None
    """The reference that a scorer compares with; what is said in a sound."""
    rejected: list[Message] | None = None
    """Of a pair, the conversation with the rejected answer: `messages`, with the chosen one, up to `context`."""
    wanted: bool | None = None
    """Whether the last answer is one to give, of rows that say so."""
    meta: dict[str, Any] = field(default_factory=dict)
    """What someone reads beyond the layout: the problem's entry for the scorer of `gym:`, further columns."""

    def key(self) -> str:
        """Returns the input without its answer, tools and documents included: rows of one key are the same problem."""
        return self._input(lambda text: text)

    def problem(self) -> str:
        """Returns the key less what a second typing may change: case, white space at signs, width, marks at the end."""
        return self._input(_plain)

    def _input(self, read: Callable[[Any], Any]) -> str:
        turns = self.messages
        if turns is not None:
            answered = any(m["role"] == "assistant" for m in turns)  # a row to answer has none
            turns = [_said(m, read) for m in (turns[: last_answer(turns)] if answered else turns)]
        words = [read(" ".join(self.tokens))] if self.tokens else [read(text) for text in (self.texts or ())[:1]]
        given = [*(each for each in (self.tools, self.documents, self.images) if each), *words]
        return _canonical([turns, read(self.text), read(self.text_pair), self.image, self.audio, *given])


def _said(message: Message, read: Callable[[Any], Any]) -> list[Any]:
    calls = [message["tool_calls"]] if message.get("tool_calls") else []
    return [message["role"], read(message.get("content")), *calls]


def _plain(text: Any) -> Any:
    """A text as two typists would agree on it; 1 2 is not 12, and 3-1 is not 3+1."""
    if not isinstance(text, str):
        return text
    normal = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(normal.split())).rstrip(".?!:")


def last_answer(messages: list[Message]) -> int:
    """Returns the index of the last assistant turn."""
    return max(i for i, m in enumerate(messages) if m["role"] == "assistant")


@dataclass(frozen=True, repr=False)
class Examples:
    """The valid rows of a source, with what was found on reading them."""

    rows: Sequence[Example]
    layout: str
    """Name of the layout, a key of `LAYOUTS`."""
    source: str
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """The (row, reason) of every bad row that was left out."""
    fingerprint: str = ""
    """SHA-256 of the rows (of paths and not of contents, for images and audio)."""
    scorer: Scorer | None = None
    labels: list[str] | None = None
    """Class names in the order of their indices, when the rows carry classes."""
    task: str = "causal-lm"
    """What the rows are for, a key of `TASKS`."""
    unread: tuple[str, ...] = ()
    """What the source holds and nothing reads: columns, keys of turns (`turn.key`), files of a folder."""

    def __len__(self) -> int:
        return len(self.rows)

    def told(self) -> dict[str, Any]:
        """Returns what is shown of them."""
        classes = {"classes": ", ".join(self.labels)} if self.labels else {}
        left_out = {"left out": len(self.skipped)} if self.skipped else {}
        return {"rows": len(self), "layout": self.layout, "task": self.task, **classes, **left_out}

    def __repr__(self) -> str:
        return (
            f"Examples({self.source!r}: {', '.join(f'{name} {shown(value)}' for name, value in self.told().items())})"
        )

    def _repr_html_(self) -> str:
        return figures({"source": self.source} | self.told())

    def keep(self, rows: Sequence[Example]) -> Examples:
        """Returns the same set with only these rows, and their fingerprint."""
        return dataclasses.replace(self, rows=rows, fingerprint=fingerprint(rows))


FINGERPRINT, KEYS = "fingerprint", "keys"
"""What `Hashed` finds, as notes of rows that are read when they are asked for."""
NAMES = tuple(each.name for each in dataclasses.fields(Example))


class Hashed:
    """Hashes of rows that are shown to it one by one: a pass for something else can find them along the way."""

    def __init__(self) -> None:
        self._digest, self.keys = hashlib.sha256(), array("Q")

    def see(self, row: Example) -> None:
        """Takes in the next row."""
        fields = {name: value for name in NAMES if (value := getattr(row, name)) or name not in LATER}
        self._digest.update(_canonical(fields).encode("utf-8", "surrogatepass") + b"\n")
        self.keys.append(_short(row.key()))

    def notes(self) -> dict[str, Any]:
        """Returns what was found, for `luthier.core.lazy.noting`."""
        return {FINGERPRINT: self._digest.hexdigest(), KEYS: self.keys}


def _hashed(rows: Iterable[Example]) -> dict[str, Any]:
    found = Hashed()
    for row in rows:
        found.see(row)
    return found.notes()


def fingerprint(rows: Sequence[Example]) -> str:
    """SHA-256, in hexadecimal, of the rows in order."""
    return noted(rows, FINGERPRINT, lambda: _hashed(rows)[FINGERPRINT])


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_by_content)


def _by_content(value: Any) -> str:
    """JSON's stand-in for bytes, pictures and arrays: a digest, never an address in memory."""
    raw = value if isinstance(value, bytes) else getattr(value, "tobytes", lambda: None)()
    return hashlib.sha256(raw).hexdigest() if raw is not None else str(value)


def split(
    examples: Examples,
    eval_fraction: float = 0.1,
    n: int | None = None,
    seed: int = 0,
) -> tuple[Examples, Examples]:
    """Splits rows into (train, eval): `n` rows, or a fraction of them, drawn by `seed`; each part keeps the
    source's order.

    Rows with the same input (whatever their answer) go to the same side, so no problem is seen in
    both. Raises if either part would be empty.
    """
    wanted = n if n is not None else round(len(examples) * eval_fraction)
    group_of, sizes = _groups(examples.rows)
    order = array("q", range(len(sizes)))
    random.Random(seed).shuffle(order)
    chosen, count = bytearray(len(sizes)), 0
    for group in order:
        if count + sizes[group] <= wanted:
            chosen[group] = 1
            count += sizes[group]
    if not 0 < count < len(examples):
        least = min(sizes)
        why = "both parts need at least one row. Give more rows or another size."
        if 0 < wanted < least < len(examples):
            why = (
                f"rows of one input stay together, and no input has fewer than {least} rows. Hold out {least} or more "
                "(eval_fraction), give rows to evaluate on (eval_data), or take out those that repeat an input."
            )
        raise LuthierError(
            f"cannot hold out {wanted} of the {len(examples)} rows of {examples.source} ({len(sizes)} distinct "
            f"inputs): {why}"
        )
    parts = [kept(examples.rows, (i for i, g in enumerate(group_of) if chosen[g] == side)) for side in (0, 1)]
    return examples.keep(parts[0]), examples.keep(parts[1])


def _groups(rows: Sequence[Example]) -> tuple[Sequence[int], Sequence[int]]:
    """(the group of each row, the rows of each group): rows of one key are a group, in the order of their first.

    Keys are told apart by 64 bits of a hash, which is what memory holds of them.
    """
    import numpy as np

    keys = np.array(noted(rows, KEYS, lambda: array("Q", (_short(each.key()) for each in rows))), dtype=np.uint64)
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    places = np.empty(len(firsts), dtype=np.int64)
    places[firsts.argsort()] = np.arange(len(firsts))
    group_of = places[inverse]
    return array("q", group_of.tobytes()), array("q", np.bincount(group_of, minlength=len(firsts)).tobytes())


def _short(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def without(examples: Examples, other: Examples) -> Examples:
    """Returns `examples` less the problems that occur in `other`: a test set that training has not seen."""
    problems = [_short(example.problem()) for example in examples.rows]
    asked = set(problems)
    seen = {problem for example in other.rows if (problem := _short(example.problem())) in asked}
    return examples.keep(kept(examples.rows, (i for i, problem in enumerate(problems) if problem not in seen)))


@dataclass(frozen=True)
class Scorer:
    """`score(prediction, example)` in [0, 1]; 1 is right."""

    name: str
    score: Callable[[str, Example], float]
