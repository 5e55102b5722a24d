"""An encoded example as a person reads it: which tokens are in the loss."""

from __future__ import annotations

from typing import Any

from luthier.data.encode import IGNORED
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


def show_example(encoded: Feature, tokenizer: Any, beside: bool = False) -> Any:
    """Returns a rich renderable: every token between bars, those in the loss highlighted, then the answer
    as text.

    For features of `encode`; a label that is not a token per position is printed as it is. A row that stands `beside`
    another, as a rejected answer does, is called so.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    body = Text()
    for text, learned in tokens_shown(encoded, tokenizer):
        body.append(_visible(text), style="bold black on green" if learned else "dim")
        body.append("│" + "\n" * text.count("\n"), style="dim")
    head = Text(title(encoded, beside))
    return Group(
        Panel(body, title=head, title_align="left"),
        Text(f"{_heading(beside)}: ") + Text(_answer(encoded, tokenizer)),
        *map(Text, _notes(encoded)),
    )


def show_plain(encoded: Feature, tokenizer: Any, beside: bool = False) -> str:
    """Returns the same as plain text: tokens between bars, those in the loss in `[[…]]`."""
    body = ""
    for text, learned in tokens_shown(encoded, tokenizer):
        shown = _visible(text)
        body += (f"[[{shown}]]" if learned else shown) + "│" + "\n" * text.count("\n")
    said = f"{_heading(beside)}: {_answer(encoded, tokenizer)}"
    return "\n".join([title(encoded, beside), body, said, *_notes(encoded)])


def _heading(beside: bool) -> str:
    return COMPARED.capitalize() if beside else "In the loss"


def _notes(encoded: Feature) -> list[str]:
    """What the user should hear of the row, a line each."""
    return [f"Note: {note} ({count})" for note, count in encoded.get(TOLD, {}).items()]


def title(encoded: Feature, beside: bool = False) -> str:
    """Returns the title: how many tokens are in the loss, or the label of the whole row."""
    if _aligned(encoded):
        return counts(encoded, *([COMPARED] if beside else []))
    return f"row {encoded['row']}: {len(encoded['input_ids'])} tokens, labels {encoded['labels']}"


def _aligned(encoded: Feature) -> bool:
    labels = encoded["labels"]
    return isinstance(labels, list) and len(labels) == len(encoded["input_ids"])


def parts_of(encoded: Feature) -> list[tuple[Feature, bool]]:
    """Returns a row and those beside it, each with whether it is only compared with: an objective's parts are not."""
    return [(row, place > 0 and "part" not in row) for place, row in enumerate((encoded, *encoded.get("also", ())))]


def heard(encoded: Feature) -> bool:
    """Returns whether a row is a sound whose labels are a text."""
    return "input_ids" not in encoded and isinstance(encoded["labels"], list)


def tokens_shown(encoded: Feature, tokenizer: Any) -> list[tuple[str, bool]]:
    """Returns (text, in the loss) of every token; none is, where the label is of the whole row."""
    if _aligned(encoded):
        return pieces(encoded, tokenizer)
    return pieces({**encoded, "labels": [IGNORED] * len(encoded["input_ids"])}, tokenizer)


def _answer(encoded: Feature, tokenizer: Any) -> str:
    labels = encoded["labels"]
    if not isinstance(labels, list):
        return str(labels)
    return repr(_text(tokenizer, [i for i in labels if i != IGNORED]))


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _visible(text: str) -> str:
    return text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
