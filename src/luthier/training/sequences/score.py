"""Scores of test rows: minus the loss of each, for rows without answers to compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from luthier import data
from luthier.core.contracts.example import Examples
from luthier.core.sites.probe import eval_mode
from luthier.data.labels import labels_in_order
from luthier.models import Loaded
from luthier.training.row_gradients import log_loss
from luthier.training.sequences.prepare import Plan, Task

Scorer = Callable[[Any, Any, Examples, str], list[float]]
"""What compares answers, from above this package: (model, processor, test rows, task) -> the score of each row."""


def scores_of(plan: Plan, task: Task, loaded: Loaded, answers: Scorer | None) -> np.ndarray:
    """Returns the score of every test row of a task."""
    if plan.spec.score == "loss" or answers is None:
        return -losses(plan, task, loaded)
    return np.asarray(answers(loaded.model, loaded.processor, task.test, task.prepared.task), dtype=float)


def losses(plan: Plan, task: Task, loaded: Loaded) -> np.ndarray:
    """Returns the loss of each test row, the mean over its labels."""
    rows = labels_in_order(task.encoded_test, plan.labels, loaded.model.config)
    collate, size = data.collator_for(task.prepared.task, loaded.processor), plan.run.training.batch
    found: list[float] = []
    with eval_mode(loaded.model):
        for start in range(0, len(rows), size):
            batch = collate([rows[i] for i in range(start, min(start + size, len(rows)))])
            labels = batch.pop("labels")
            batch.pop("rows")
            device = loaded.model.device
            given = {key: value.to(device) for key, value in batch.items()}
            seq2seq = {"labels": labels.to(device)} if task.prepared.task == "seq2seq" else {}
            logits = loaded.model(**given, **seq2seq).logits
            found += [row_loss(row, label.to(device), bool(seq2seq)) for row, label in zip(logits, labels, strict=True)]
    return np.asarray(found)


def row_loss(logits: torch.Tensor, labels: torch.Tensor, unshifted: bool) -> float:
    """Returns the loss of one row; a decoder beside an encoder has a prediction for its first label too."""
    if unshifted:
        return float(torch.nn.functional.cross_entropy(logits.float(), labels))
    return float(log_loss(logits, labels))
