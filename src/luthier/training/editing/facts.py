"""Facts: a prompt with its answer, and prompts that tell whether a model learned that and no more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.data.columns import unread
from luthier.data.sources import read

TARGETS = ("target", "target_new", "completion", "answer")
"""Columns that may hold the answer; the first that a row has."""
IGNORED = -100
MARKS = ".,;:!?\"'()"


@dataclass(frozen=True)
class Fact:
    """One fact to write."""

    row: int
    prompt: str
    target: str
    rephrased: tuple[str, ...] = ()
    """Other prompts with the same answer."""
    neighbours: tuple[str, ...] = ()
    """Prompts about other things, whose answers are to stay."""


def read_facts(source: str, limit: int | None = None) -> list[Fact]:
    """Returns the facts of a source; raises as `read_whole`."""
    return read_whole(source, limit)[0]


def read_whole(source: str, limit: int | None = None) -> tuple[list[Fact], list[str]]:
    """Returns (the facts of a source, the columns that say something and that nothing reads); raises one
    `LuthierError` for all rows that are none.

    A row has `prompt` and `target` (or target_new, completion, answer), and may have `rephrased` and `neighbours`, each
    a text or a list of texts. Refused are empty prompts and targets, prompts that already hold their target, one prompt
    with two targets, and neighbours that are prompts of facts.
    """
    table = read(source)
    bad: list[tuple[int, str]] = list(table.bad)
    facts: list[Fact] = []
    known: dict[str, Fact] = {}
    for row, columns in table.rows:
        try:
            fact = _fact(row, columns)
            other = known.setdefault(fact.prompt, fact)
            if other.target != fact.target:
                raise LuthierError(f"row {other.row} has the same prompt and the target {other.target!r}")
            facts.append(fact)
        except LuthierError as error:
            bad.append((row, str(error)))
    bad += [(fact.row, f"its neighbour {text!r} is the prompt of row {known[text].row}, whose answer is to change")
            for fact in facts for text in fact.neighbours if text in known]  # fmt: skip
    if bad:
        shown = "\n".join(f"  row {row}: {reason}" for row, reason in sorted(bad)[:10])
        wrong = {row for row, _ in bad}
        whole = len(wrong | {fact.row for fact in facts})
        raise LuthierError(f"{len(wrong):,} of {whole:,} rows of {source} are no facts:\n{shown}")
    if not facts:
        raise LuthierError(f"{source} is empty: no fact to write.")
    return facts[:limit], unread((_beside(row) for _, row in table.rows), ("prompt", "rephrased", "neighbours"), ())


def _target(columns: Mapping[str, Any]) -> str | None:
    """The column of a row that holds its target."""
    return next((name for name in TARGETS if columns.get(name) is not None), None)


def _beside(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A row without its target; others may stand in it, which are not read."""
    taken = _target(columns)
    return {name: value for name, value in columns.items() if name != taken}


def _fact(row: int, columns: Mapping[str, Any]) -> Fact:
    prompt = columns.get("prompt")
    target = columns.get(_target(columns) or TARGETS[0])
    if not isinstance(prompt, str) or not prompt.strip():
        raise LuthierError("it has no prompt (a text in the column prompt)")
    if not isinstance(target, str) or not target.strip():
        raise LuthierError("it has no target (a text in the column target)")
    if _holds(prompt, target):
        raise LuthierError(f"its prompt already holds the target {target.strip()!r}, so nothing could be learned")
    rephrased = _texts(columns, "rephrased")
    if any(_holds(text, target) for text in rephrased):
        raise LuthierError(f"a rephrased prompt already holds the target {target.strip()!r}, so it would tell nothing")
    return Fact(row, prompt, target, rephrased, _texts(columns, "neighbours"))


def _holds(prompt: str, target: str) -> bool:
    """Whether the words of a target stand in a prompt, whatever the case and the marks around them."""
    words = target.strip().strip(MARKS).strip() or target.strip()
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, re.IGNORECASE) is not None


def _texts(columns: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = columns.get(name) or ()
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise LuthierError(f"its {name} is {value!r:.60}; expected a text or a list of texts")
    return tuple(texts)


def encoded(prompt: str, target: str, tokenizer: Any, end: bool) -> tuple[list[int], list[int]]:
    """Returns (ids, labels) of a prompt and its target, a space between them where neither has one; `end` adds EOS."""
    space = "" if prompt[-1:].isspace() or target[:1].isspace() else " "
    before = list(tokenizer(prompt)["input_ids"])
    if before and before[-1] == tokenizer.eos_token_id:
        before.pop()  # of tokenizers that end every text
    after = list(tokenizer(space + target, add_special_tokens=False)["input_ids"])
    after += [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    return before + after, [IGNORED] * len(before) + after


def padded(rows: Iterable[tuple[Sequence[int], Sequence[int]]], pad: int) -> dict[str, Tensor]:
    """Returns a batch of (ids, labels), padded on the right."""
    rows = list(rows)
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    labels, mask = torch.full((len(rows), width), IGNORED), torch.zeros(len(rows), width, dtype=torch.long)
    for place, (tokens, wanted) in enumerate(rows):
        ids[place, : len(tokens)] = torch.tensor(tokens)
        labels[place, : len(wanted)] = torch.tensor(wanted)
        mask[place, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
