"""The loss of facts, and what an edited model knows: reliability, generalisation, locality."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.control import disabled
from luthier.core.sites.probe import eval_mode
from luthier.training.editing.facts import IGNORED, Fact, encoded, padded

NEIGHBOURING = 8
"""Tokens that a neighbour prompt is gone on with."""


def fact_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Returns the loss of each fact, [rows]: the mean of - log p over its target's tokens."""
    logits, labels = _answers(model, batch)
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return losses.sum(1) / labels.ne(IGNORED).sum(1)


def _answers(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(logits that predict the tokens behind the shortest prompt, in float32 at least; labels of these places)."""
    device = next(model.parameters()).device
    given = {key: t.to(device) for key, t in batch.items() if key != "labels"}
    labels = batch["labels"].to(device)[:, 1:]
    first = int(labels.ne(IGNORED).any(0).float().argmax())
    if "logits_to_keep" in inspect.signature(model.forward).parameters:  # the prompts are not asked for
        kept = torch.arange(first, labels.shape[1], device=device)  # a number would slice: one product for each row
        logits = model(**given, logits_to_keep=kept).logits
    else:
        logits = model(**given).logits[:, first:-1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), labels[:, first:]


def known(model: nn.Module, tokenizer: Any, asked: Sequence[tuple[str, str]], size: int) -> list[bool]:
    """Returns of each (prompt, target) whether greedy decoding writes the target: every token is the likeliest."""
    found: list[bool] = []
    with eval_mode(model):
        for start in range(0, len(asked), size):
            rows = [encoded(prompt, target, tokenizer, end=False) for prompt, target in asked[start : start + size]]
            logits, labels = _answers(model, padded(rows, pad_of(tokenizer)))
            right = logits.argmax(-1).eq(labels) | labels.eq(IGNORED)
            found += right.all(1).tolist()
    return found


def pad_of(tokenizer: Any) -> int:
    """Returns the id that rows are padded with, which the mask hides."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None)


def measured(
    model: nn.Module, tokenizer: Any, facts: Sequence[Fact], size: int, base: bool = False
) -> dict[str, list[bool]]:
    """Returns, row by row, `reliability` (the facts' prompts), `generalisation` (rephrased ones) and `locality`.

    Locality is whether the model without the adapter and with it go on alike with a neighbour prompt: the greedy
    continuation of the base, each of whose tokens must be the edited model's likeliest too. Of the `base` it is 1.
    """
    asked = [(fact.prompt, fact.target) for fact in facts]
    other = [(text, fact.target) for fact in facts for text in fact.rephrased]
    near = [text for fact in facts for text in fact.neighbours]
    found = {"reliability": known(model, tokenizer, asked, size)}
    if other:
        found["generalisation"] = known(model, tokenizer, other, size)
    if near:
        found["locality"] = [True] * len(near) if base else alike(model, tokenizer, near, size)
    return found


def alike(model: nn.Module, tokenizer: Any, prompts: Sequence[str], size: int) -> list[bool]:
    """Returns of each prompt whether the base and the edited model go on alike, greedily."""
    found = [False] * len(prompts)
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    device = next(model.parameters()).device
    with eval_mode(model):
        for places in _of_one_length(rows, size):
            ids = torch.tensor([rows[place] for place in places], device=device)
            with disabled(model):
                whole = greedy(model, ids)
            seen = model(input_ids=whole).logits[:, ids.shape[1] - 1 : -1].argmax(-1)
            for place, same in zip(places, seen.eq(whole[:, ids.shape[1] :]).all(1).tolist(), strict=True):
                found[place] = same
    return found


def _of_one_length(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of rows of one length, at most `size` together: decoding needs no padding then."""
    by: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by.setdefault(len(row), []).append(place)
    for places in by.values():
        yield from (places[at : at + size] for at in range(0, len(places), size))


def greedy(model: nn.Module, ids: Tensor) -> Tensor:
    """Returns ids [rows, T] with the `NEIGHBOURING` likeliest next tokens of each row."""
    for _ in range(NEIGHBOURING):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids


def text_loss(model: nn.Module, tokenizer: Any, texts: Sequence[str], width: int = 256) -> float:
    """Returns the mean loss of a token of texts, in pieces of `width` tokens."""
    ids = torch.tensor([i for text in texts for i in tokenizer(text)["input_ids"]])
    total, count = 0.0, 0
    with eval_mode(model):
        for piece in ids.split(width):
            if len(piece) > 1:
                batch = {
                    "input_ids": piece[None],
                    "attention_mask": torch.ones_like(piece)[None],
                    "labels": piece[None],
                }
                total += float(fact_losses(model, batch)) * (len(piece) - 1)
                count += len(piece) - 1
    return total / max(count, 1)
