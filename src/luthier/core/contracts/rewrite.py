"""The contract of a rewrite: it makes rows from rows, with a model that writes and a judge that looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from luthier.core.contracts.component import Component
from luthier.core.contracts.example import Example, Examples, Message, last_answer

Asked = Sequence[list[Message]]
"""Conversations that end before an answer."""
Voice = Callable[[Asked], "list[str | None]"]
"""A model or function that answers: one text for each conversation, None where it did not answer."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of an answer."""

    right: bool | None
    """None: it did not say."""
    why: str = ""
    """Why it did not."""


@dataclass(frozen=True)
class Voices:
    """Who writes, judges and criticises."""

    write: Voice
    """The model that the rows are made for; greedy, and it always answers."""
    judge: Callable[[Sequence[tuple[Example, str]]], list[Verdict]] | None = None
    """Whether an answer to a row is right, by the row's own."""
    critics: tuple[Voice, ...] = ()
    meta: Voice | None = None
    """Who verifies what the critics say."""


@dataclass(frozen=True)
class Made:
    """A row that was made."""

    row: dict[str, Any]
    origin: str
    """Where it comes from, in the words of the rewrite."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else is to be known of it; goes into the column `from`."""


@dataclass(frozen=True)
class Rewrite(Component):
    """A rule that makes rows from rows: `rows` gives those of each example, in the order of the examples."""

    judged: ClassVar[bool] = True
    """Whether it needs a judge."""
    criticised: ClassVar[bool] = False
    """Whether it needs critics and a meta-critic."""
    writes: ClassVar[bool] = True
    """Whether a model writes; one that needs none makes its rows of the examples alone."""
    reads: ClassVar[Literal["answers", "labels"]] = "answers"
    """The examples that it takes: conversations with an answer, or texts with a class."""

    def check_examples(self, examples: Examples) -> None:
        """Raises `LuthierError` for examples that it cannot make rows of; called before a model is loaded."""

    def inputs(self) -> dict[str, Any]:
        """Returns what its rows follow from beside the examples, as JSON: the settings, and the files they name."""
        return self.to_dict()

    def rows(self, examples: Sequence[Example], voices: Voices) -> list[list[Made]]:
        """Returns the rows made of each example, [examples]; where a voice is silent, no row of data is lost.

        Examples are what `reads` says. The same examples give the same rows, whatever came before.
        """
        raise NotImplementedError(f"{type(self).__name__} must define rows")


def asked(example: Example) -> list[Message]:
    """Returns the conversation up to its last answer."""
    turns = example.messages or []
    return turns[: last_answer(turns)]


def answer_of(example: Example) -> str:
    """Returns the text of the last answer of a row."""
    turns = example.messages or []
    return str(turns[last_answer(turns)].get("content") or "")


def question_of(example: Example) -> str:
    """Returns what is asked, as one text: the turns before the answer, with their roles where there are several."""
    turns = asked(example)
    if len(turns) == 1:
        return str(turns[0].get("content") or "")
    return "\n\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in turns)


def answered(example: Example, text: str) -> dict[str, Any]:
    """Returns the row with another last answer, in a layout that puts the same tokens into the loss."""
    turns, place = example.messages or [], last_answer(example.messages or [])
    last = {**turns[place], "content": text}
    beside = {name: value for name in ("tools", "documents") if (value := getattr(example, name))}
    beside |= {"chat_template_kwargs": example.template} if example.template else {}
    if example.context >= place:
        return {"prompt": turns[:place], "completion": [last, *turns[place + 1 :]], **beside}
    marked = [{**turn, "weight": 0} if i in example.masked else turn for i, turn in enumerate(turns)]
    return {"messages": [*marked[:place], last, *turns[place + 1 :]], **beside}
