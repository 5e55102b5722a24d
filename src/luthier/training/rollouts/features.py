"""The rows of a step from sampled answers: prompt and answer, with what the objective has to know of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from luthier.core.contracts.objective import ADVANTAGE, ALSO, PART, SAMPLED, SAMPLED_FIGURES, Rollouts

Feature = dict[str, Any]
IGNORED = -100
READ = ("input_ids", "attention_mask", "labels", "row")
NEUTRAL = [0.0] * len(SAMPLED_FIGURES)


def unpacked(batch: Mapping[str, Any]) -> list[Feature]:
    """Returns the rows of a batch without their padding."""
    found = []
    for place, row in enumerate(batch["rows"]):
        kept = batch["attention_mask"][place].bool()
        columns = {key: batch[key][place][kept].tolist() for key in READ[:3]}
        found.append({**columns, "row": row})
    return found


def answered(prompt: Sequence[int], answer: Sequence[int], row: int) -> Feature:
    """Returns the row of an answer, whose tokens are in the loss."""
    ids = [*prompt, *answer]
    labels = [IGNORED] * len(prompt) + [*answer]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "row": row}


def in_parts(sampled: Sequence[Feature], rows: Sequence[Feature]) -> list[Feature]:
    """Returns sampled answers as part 0, and behind them the rows themselves as part 1."""
    return [f | {PART: [1, 0]} for f in sampled] + [{key: f[key] for key in READ} | {PART: [0, 1]} for f in rows]


def imagined(feature: Feature, rollouts: Rollouts, scored: bool) -> Feature:
    """Returns a row as long as one with a sampled answer may be, behind it the others of its group: for estimates."""
    ids = list(feature["input_ids"])
    group = [answered(ids[:-1], ids[-1:], feature["row"])] * rollouts.group
    group = in_parts(group, [feature]) if rollouts.beside else group
    group = [f | {ADVANTAGE: 0.0, SAMPLED: NEUTRAL} for f in group] if scored else group
    return group[0] | ({ALSO: group[1:]} if group[1:] else {})


def packed(batches: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Returns batches as tensors by name, for a checkpoint."""
    return {
        f"{index}.{key}": torch.as_tensor(value).contiguous()
        for index, batch in enumerate(batches)
        for key, value in batch.items()
    }


def restored(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Returns the batches that `packed` made tensors of."""
    found: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        found.setdefault(int(index), {})[key] = tensor.tolist() if key == "rows" else tensor
    return [found[index] for index in sorted(found)]
