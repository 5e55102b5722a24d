"""An encoded example as a person reads it: which tokens are in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.encode import IGNORED
from luthier.data.labels import CLASSES, END
from luthier.data.told import TOLD

Feature = dict[str, Any]
WINDOW = 8
"""Tokens decoded before one to read it in its place: a character may need four of them."""


def pieces(encoded: Feature, tokenizer: Any) -> list[tuple[str, bool]]:
    """Returns (text, in the loss) of every token; those that make one character together come as one
    piece."""
    ids, labels = encoded["input_ids"], encoded["labels"]
    texts: list[tuple[str, bool]] = []
    begin = 0
    for i in range(len(ids)):
        before = _text(tokenizer, ids[max(0, begin - WINDOW) : begin])
        text = _text(tokenizer, ids[max(0, begin - WINDOW) : i + 1])[len(before) :]
        whole = not text.endswith("�") or i + 1 - begin == WINDOW or i + 1 == len(ids)
        if whole:
            texts.append((text, labels[i] != IGNORED))
            begin = i + 1
    return texts


def counts(encoded: Feature, said: str = "in the loss") -> str:
    """Returns `row 1: 54 tokens, 12 in the loss`."""
    learned = sum(label != IGNORED for label in encoded["labels"])
    cut = f", {encoded['truncated']} cut from the prompt" if encoded.get("truncated") else ""
    return f"row {encoded['row']}: {len(encoded['input_ids'])} tokens, {learned} {said}{cut}"


COMPARED = "compared with it"
"""What is said of a row beside another that an objective compares it with: a rejected answer, or one to another
prompt."""


@dataclass(frozen=True)
class Meaning:
    """What the labels of features mean: of which task they are, and the names of its classes."""

    task: str = "causal-lm"
    labels: Sequence[str] = ()


TOKENS = Meaning()


def show_example(encoded: Feature, tokenizer: Any, beside: bool = False, meaning: Meaning = TOKENS) -> Any:
    """Returns a rich renderable: every token between bars, those in the loss highlighted, then the answer
    as text.

    For features of `encode`; of other tasks, what is learned of the row is said by its `meaning`. A row that stands
    `beside` another, as a rejected answer does, is called so.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    body = Text()
    for text, learned in tokens_shown(encoded, tokenizer, meaning):
        body.append(_visible(text), style="bold black on green" if learned else "dim")
        body.append("│" + "\n" * text.count("\n"), style="dim")
    head = Text(title(encoded, beside, meaning))
    return Group(
        Panel(body, title=head, title_align="left"),
        Text(f"{_heading(beside)}: ") + Text(_answer(encoded, tokenizer, beside, meaning)),
        *map(Text, _notes(encoded)),
    )


def show_plain(encoded: Feature, tokenizer: Any, beside: bool = False, meaning: Meaning = TOKENS) -> str:
    """Returns the same as plain text: tokens between bars, those in the loss in `[[…]]`."""
    body = ""
    for text, learned in tokens_shown(encoded, tokenizer, meaning):
        shown = _visible(text)
        body += (f"[[{shown}]]" if learned else shown) + "│" + "\n" * text.count("\n")
    said = f"{_heading(beside)}: {_answer(encoded, tokenizer, beside, meaning)}"
    return "\n".join([title(encoded, beside, meaning), body, said, *_notes(encoded)])


def _heading(beside: bool) -> str:
    return COMPARED.capitalize() if beside else "In the loss"


def _notes(encoded: Feature) -> list[str]:
    """What the user should hear of the row, a line each."""
    return [f"Note: {note} ({count})" for note, count in encoded.get(TOLD, {}).items()]


def title(encoded: Feature, beside: bool = False, meaning: Meaning = TOKENS) -> str:
    """Returns the title: how many tokens are in the loss, or what the label of the whole row is."""
    if isinstance(encoded["labels"], list):
        return counts(encoded, *([COMPARED] if beside else []))
    label = _class(encoded, meaning) or f"label {encoded['labels']}"
    said = "" if meaning.task == "embedding" else f", {label}"
    return f"row {encoded['row']}: {len(encoded['input_ids'])} tokens{said}"


def _class(encoded: Feature, meaning: Meaning) -> str:
    """The classes of a whole row by name; empty where it has none."""
    if CLASSES in encoded:
        chosen = [name for name, there in zip(meaning.labels, encoded[CLASSES], strict=False) if there]
        return f"classes {', '.join(chosen)}" if chosen else "none of the classes"
    return f"class {meaning.labels[encoded['labels']]}" if meaning.labels else ""


def _aligned(encoded: Feature, meaning: Meaning) -> bool:
    """Whether there is a label for each token: an encoder-decoder's are those of another text."""
    labels = encoded["labels"]
    return meaning.task != "seq2seq" and isinstance(labels, list) and len(labels) == len(encoded["input_ids"])


def parts_of(encoded: Feature) -> list[tuple[Feature, bool]]:
    """Returns a row and those beside it, each with whether it is only compared with: an objective's parts are not."""
    return [(row, place > 0 and "part" not in row) for place, row in enumerate((encoded, *encoded.get("also", ())))]


def heard(encoded: Feature) -> bool:
    """Returns whether a row is a sound whose labels are a text."""
    return "input_ids" not in encoded and isinstance(encoded["labels"], list)


def tokens_shown(encoded: Feature, tokenizer: Any, meaning: Meaning = TOKENS) -> list[tuple[str, bool]]:
    """Returns (text, in the loss) of every token; none is, where the label is of the whole row."""
    if _aligned(encoded, meaning):
        return pieces(encoded, tokenizer)
    return pieces({**encoded, "labels": [IGNORED] * len(encoded["input_ids"])}, tokenizer)


def _answer(encoded: Feature, tokenizer: Any, beside: bool, meaning: Meaning) -> str:
    labels, ids = encoded["labels"], encoded["input_ids"]
    if meaning.task == "embedding":
        return repr(_text(tokenizer, ids)) if beside else f"how near {_text(tokenizer, ids)!r} is to what follows"
    if END in encoded:
        return repr(_text(tokenizer, ids[labels : encoded[END] + 1]))
    if not isinstance(labels, list):
        return _class(encoded, meaning) or str(labels)
    learned: list[int] = [label for label in labels if label != IGNORED]
    if meaning.task == "token-classification":
        return " ".join(meaning.labels[label] for label in learned)
    return repr(_text(tokenizer, learned))


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _visible(text: str) -> str:
    return text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
