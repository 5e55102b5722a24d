"""The outputs to match: those of the model, changed by what the rows to forget had added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.core.adapters.control import trainable
from luthier.core.sites.probe import eval_mode
from luthier.models import Loaded
from luthier.training.row_gradients import Trust, log_loss, row_gradients
from luthier.training.unlearning.attribution import NewtonStep, SparseProjection, changes, softmax_curvature
from luthier.training.unlearning.spec import Unlearn

SIZE = 16
"""Rows of a pass."""


def predicted(
    spec: Unlearn, loaded: Loaded, collate: Any, own: Mapping[str, Sequence[dict[str, Any]]]
) -> tuple[dict[str, Tensor], float]:
    """Returns (t(x) = f(x) - m Σ τ(i → x) of every row to forget and to retain, [rows, classes], by set; the most that
    a logit moves).

    Two passes over the retained rows, whose Jacobians are made batch by batch and let go: one for H, one for the
    targets. `spec.unlearning` is a DMM.
    """
    method: Any = spec.unlearning
    shapes = {key: p.shape for key, p in trainable(loaded.model).items()}
    project = SparseProjection(shapes, method.dimension, spec.seed)
    newton, trust = NewtonStep(project.dimension), Trust()
    for batch in _batches(collate, own["retain"]):
        newton.stays(jacobian(loaded.model, batch, project, trust), softmax_curvature(logits_of(loaded, batch)))
    for batch in _batches(collate, own["forget"]):
        for gradients in row_gradients(loaded.model, [batch], log_loss, trust):
            newton.goes(project(gradients))
    step = method.multiplier * newton.step(method.damping)
    found, most = {}, 0.0
    for name, rows in own.items():
        parts = []
        for batch in _batches(collate, rows):
            moved = changes(jacobian(loaded.model, batch, project, trust), step)
            most = max(most, float(moved.abs().max()))
            parts.append(logits_of(loaded, batch).cpu().double() + moved)
        found[name] = torch.cat(parts)
    return found, most


def jacobian(model: Any, batch: Mapping[str, Any], project: SparseProjection, trust: Trust) -> Tensor:
    """Returns the projected gradients of each logit of each row, [rows, classes, k], one class at a time."""
    classes = int(model.config.num_labels)
    found = []
    for place in range(classes):
        parts = row_gradients(model, [batch], lambda logits, _, place=place: logits[place], trust)
        found.append(torch.cat([project(part) for part in parts]))
    return torch.stack(found, 1)


def logits_of(loaded: Loaded, batch: Mapping[str, Any]) -> Tensor:
    """Returns the logits of a batch, without gradients."""
    given = {key: t.to(loaded.model.device) for key, t in batch.items() if key not in ("labels", "rows")}
    with eval_mode(loaded.model):
        return loaded.model(**given).logits


def _batches(collate: Any, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), SIZE):
        yield collate([rows[i] for i in range(start, min(start + SIZE, len(rows)))])
