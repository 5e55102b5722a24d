"""Rows of a self-training: prompts, and the token that says each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier import data
from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError, near
from luthier.training.self_training.spec import TEXT, SelfTraining


@dataclass(frozen=True)
class Rows:
    """Rows that were read and encoded before the weights are loaded."""

    labels: list[str]
    said: list[int]
    """The token that says each class."""
    labelled: Examples
    unlabelled: Examples
    test: Examples | None
    ids: dict[str, list[list[int]]]
    """The tokens of each prompt, by name (labelled, unlabelled, test)."""
    truth: dict[str, list[int]]
    """The place of each row's class, of labelled and test rows."""


def read_rows(spec: SelfTraining, tokenizer: Any) -> Rows:
    """Reads and encodes rows.

    Raises `LuthierError` for classes that no token tells apart, and for texts that are tested and learned.
    """
    labelled = data.load(spec.labelled, task="classification", seed=spec.seed)
    unlabelled = data.load(spec.unlabelled, task="causal-lm", seed=spec.seed)
    test = data.load(spec.test, task="classification", seed=spec.seed) if spec.test else None
    if unlabelled.layout != "text":
        raise LuthierError(f"{spec.unlabelled} has {unlabelled.layout} rows; expected texts (column 'text').")
    labels = labelled.labels or []
    if len(labels) < 2:
        raise LuthierError(f"{spec.labelled} has one class ({labels[0]}), which leaves nothing to tell apart.")
    if strange := sorted(set(test.labels or [] if test else []) - set(labels)):
        raise LuthierError(f"{spec.test} has the class {strange[0]}, of which {spec.labelled} has no row.")
    sets = {"labelled": labelled, "unlabelled": unlabelled, **({"test": test} if test else {})}
    _refuse_shared(sets)
    ids = {name: [_prompt(row, spec, tokenizer, each.source) for row in each.rows] for name, each in sets.items()}
    place = {name: i for i, name in enumerate(labels)}
    truth = {name: [place[str(row.label)] for row in sets[name].rows] for name in sets if name != "unlabelled"}
    return Rows(labels, _said(spec, labels, tokenizer), labelled, unlabelled, test, ids, truth)


def _refuse_shared(sets: dict[str, Examples]) -> None:
    if "test" not in sets:
        return
    tested = {_text(row) for row in sets["test"].rows}
    for name in ("labelled", "unlabelled"):
        if shared := sum(_text(row) in tested for row in sets[name].rows):
            raise LuthierError(
                f"{shared:,} texts of {sets[name].source} are in {sets['test'].source} too, which would be tested on "
                "what was learned; remove them from one of the two."
            )


def _text(row: Example) -> str:
    return "\n".join(part for part in (row.text, row.text_pair) if part)


def _prompt(row: Example, spec: SelfTraining, tokenizer: Any, source: str) -> list[int]:
    begin = tokenizer("").input_ids[:1]
    begin = begin if begin == [tokenizer.bos_token_id] else []
    ids = [*begin, *tokenizer(spec.template.replace(TEXT, _text(row)), add_special_tokens=False).input_ids]
    if len(ids) > spec.max_length:
        raise LuthierError(
            f"{source}, row {row.row}: the prompt has {len(ids)} tokens, the maximum is {spec.max_length} (raise "
            "max_length, or shorten the text)."
        )
    return ids


def _said(spec: SelfTraining, labels: Sequence[str], tokenizer: Any) -> list[int]:
    """The first token of each class's word; raises where two are the same."""
    words = spec.named()
    if strange := [name for name in words if name not in labels]:
        raise LuthierError(f"words names the class {strange[0]!r}{near(strange[0], labels)} There are: "
                           f"{', '.join(labels)}.")  # fmt: skip
    found: dict[int, str] = {}
    for name in labels:
        word = words.get(name, f" {name}")
        tokens = tokenizer(word, add_special_tokens=False).input_ids
        if not tokens or tokens[0] in found:
            other = f"that of {found[tokens[0]]!r}" if tokens else "none"
            raise LuthierError(
                f"the class {name!r} is said by {word!r}, whose first token is {other}; choose words that begin "
                "otherwise (words, as CLASS=WORD)."
            )
        found[tokens[0]] = name
    return list(found)


def padded(ids: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Returns (the model's arguments, the place of the last token of each row)."""
    width = max(map(len, ids))
    tokens = torch.full((len(ids), width), pad)
    mask = torch.zeros((len(ids), width), dtype=torch.long)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    last = mask.sum(1) - 1
    return {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}, last.to(device)
