"""The contract of an objective: a loss on a batch, and the pure hooks around it.

The loss of an optimiser step is a weighted mean of means, L = Σ_k w_k (Σ_b n_kb l_kb) / (Σ_b n_kb), over the parts k
into which an objective divides its rows (most have one) and the batches b of the step, on all processes. An objective
says what the means of a batch are (`loss`), over how much each is taken (`counts`) and what the parts weigh
(`shares`); the trainer does the sums, so a step in many batches is the step in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.contracts.component import Component

if TYPE_CHECKING:
    from luthier.core.contracts.example import Examples
    from luthier.core.contracts.form import Form

Feature = dict[str, Any]
"""One encoded row, by the names of what the model is called with."""
Batch = Mapping[str, Any]
"""What the model is called with, `labels` included."""
ObjectiveState = dict[str, Any]
"""What an objective remembers from one evaluation to the next, as JSON holds it."""
PART = "part"
"""Feature that tells a row's part: a list with 1 at its place and 0 elsewhere; in a batch [rows, parts]."""
TASKS = "tasks"
"""Feature that tells a row's task: its place among the names of a routed form; in a batch [rows]."""
ALSO = "also"
"""Feature that holds further rows, which stand in the batch behind the row that brings them."""


@dataclass(frozen=True)
class Rows:
    """Encoded rows on their way to the trainer, and what an objective may need to shape them."""

    examples: Examples
    """The rows before they were encoded; `feature["row"]` is `example.row`."""
    features: list[Feature]
    encode: Callable[[Examples], list[Feature]]
    """Encodes other rows as these were; raises `LuthierError` for those that cannot be."""
    processor: Any
    """The tokenizer (or what prepares pictures and sounds)."""
    max_length: int
    seed: int
    tasks: tuple[str, ...] = ()
    """The tasks that the column `task` names, in training and evaluation rows together, sorted."""


@dataclass(frozen=True)
class At:
    """Where training stands."""

    step: int
    """Optimiser steps done."""
    steps: int
    """Optimiser steps of the run."""
    training: bool
    """Whether the batch is trained on; else it is only measured."""


@dataclass(frozen=True)
class Objective(Component):
    """What training lowers. Every hook is pure; `loss` alone must be written."""

    renamed: ClassVar = {
        "counts": "token_counts", "shares": "part_weights", "watch": "eval_batches", "remember": "update_state",
    }  # fmt: skip

    neutral: ClassVar[Mapping[str, Any]] = {}
    """Settings at which it is supervised fine-tuning, bit for bit."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the data that it reads beside those of the layout; they are in `example.meta`."""

    def check_form(self, form: Form) -> None:
        """Raises `LuthierError` for a form that it cannot train; called before the weights are loaded."""

    def rows(self, rows: Rows) -> list[Feature]:
        """What is batched, before the weights are loaded; raises `LuthierError` for data that do not fit."""
        return rows.features

    def inputs(self, batch: Batch, at: At) -> Batch:
        """The batch that `loss` is given, from the collated one."""
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of each part, [parts], 0 where a part has no rows; a scalar is the mean of one part."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")

    def token_counts(self, batch: Batch, labels: Tensor) -> Tensor:
        """[parts], what each mean of `loss` is over: by default the labels in the loss, `labels` [rows] of each."""
        return by_part(batch, labels)

    def part_weights(self, counts: Tensor, state: ObjectiveState) -> Tensor:
        """[parts], what each part weighs in a step whose `counts` sum to these: by default those present, alike."""
        present = counts.gt(0).float()
        return present / present.sum().clamp(min=1)

    def eval_batches(self, step: int) -> int | None:
        """Evaluation batches to look at after `step` steps: none by default; None is all of them."""
        return 0

    def update_state(
        self, state: ObjectiveState, step: int, losses: list[float], counts: list[float]
    ) -> ObjectiveState:
        """The memory after such a look, from the means of the parts and their counts; JSON, kept in checkpoints."""
        return state


def by_part(batch: Batch, values: Tensor) -> Tensor:
    """The sums of `values` [rows] over the rows of each part, [parts]."""
    return (values[:, None] * batch[PART]).sum(0) if PART in batch else values.sum()[None]


def labels_of(batch: Batch, shifted: bool) -> Tensor:
    """How many labels of each row are in the loss, [rows]; `shifted`, a row's first one has no prediction."""
    labels: Tensor = batch["labels"]
    if labels.dim() == 1:
        return torch.ones(len(labels), dtype=torch.long, device=labels.device)
    return (labels[:, 1:] if shifted else labels).ne(-100).sum(1)
