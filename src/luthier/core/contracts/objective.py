"""The contract of an objective: a loss on a batch, and the pure hooks around it.

The loss of an optimiser step is a weighted mean of means, L = Σ_k w_k (Σ_b n_kb l_kb) / (Σ_b n_kb), over the parts k
into which an objective divides its rows (most have one) and the batches b of the step, on all processes. An objective
says what the means of a batch are (`loss`), over how many tokens each is taken (`token_counts`) and what the parts
weigh (`part_weights`); the trainer does the sums, so a step in many batches is the step in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.contracts.component import Component

if TYPE_CHECKING:
    from luthier.core.contracts.example import Examples
    from luthier.core.contracts.form import Form

Feature = dict[str, Any]
"""One encoded row: the model's arguments by name."""
Batch = Mapping[str, Any]
"""The model's arguments by name, `labels` included."""
ObjectiveState = dict[str, Any]
"""The state that an objective keeps from one evaluation to the next, as JSON."""
PART = "part"
"""The feature that holds a row's part: a one-hot list; in a batch [rows, parts]."""
TASKS = "tasks"
"""The feature that holds a row's task: its index among the task names of a routed form; in a batch [rows]."""
ALSO = "also"
"""The feature that holds further rows, which follow the row that brings them in the batch."""
REFERENCE = "reference"
"""The feature that holds the log-probability of a row's answer under the reference; in a batch [rows]."""
ADVANTAGE = "advantage"
"""The feature of a sampled answer that holds how much better it is than the others of its prompt; in a batch [rows]."""
SAMPLED = "sampled"
"""The feature of a sampled answer that holds its `SAMPLED_FIGURES`, in their order; in a batch [rows, figures]."""
REFERENCE_TOKENS = "reference_tokens"
"""The feature of a sampled answer that holds log p of each next token with the adapter off.

In a batch [rows, T], 0 outside the answer.
"""
OLD_TOKENS = "old_tokens"
"""The feature of a sampled answer that holds the same by the model that sampled it."""
SAMPLED_FIGURES = ("reward", "tokens", "truncated", "empty", "failed", "flat")
"""What is known of a sampled answer.

The reward (NaN where it is not known), the length, and whether it hit the length limit, has no text, could not be
scored, or is of a prompt all of whose answers have one reward.
"""
STRUCTURED = ("multi-label", "token-classification", "question-answering")
"""Tasks whose rows have no one label: several classes of a text, tags of its words, places in it."""
EMBEDDING = "embedding"
"""The task of a model whose output is a vector."""
BASE = "base"
"""What the setting `reference` of an objective calls the base, of a run that goes on from an adapter."""
Figures = dict[str, Tensor]
"""Figures of a batch beside its loss: by name, one number for each row (or pair) that the figure is a mean over."""


@dataclass(frozen=True)
class Rows:
    """The encoded rows before training, and what an objective may need to reshape them."""

    examples: Examples
    """The rows before they were encoded; `feature["row"]` is `example.row`."""
    features: Sequence[Feature]
    encode: Callable[[Examples], Sequence[Feature]]
    """Encodes other rows as these were; raises `LuthierError` for those that cannot be."""
    processor: Any
    """The tokenizer (or what prepares pictures and sounds)."""
    max_length: int
    seed: int
    tasks: tuple[str, ...] = ()
    """The tasks that the column `task` names, in training and evaluation rows together, sorted."""
    held: bool = False
    """Whether they are the rows of the evaluations, which may be few."""


@dataclass(frozen=True)
class Rollouts:
    """How answers are sampled from the model under training."""

    group: int
    """Answers of each prompt."""
    max_tokens: int
    temperature: float
    top_p: float
    iterations: int = 1
    """Optimiser steps that are taken on the same answers."""
    reference: bool = False
    """Whether `REFERENCE_TOKENS` are wanted."""
    old: bool = False
    """Whether `OLD_TOKENS` are wanted."""
    kl: bool = False
    """Whether `Scored.kl` is wanted."""
    rounds: int = 0
    """Rounds of other prompts for those whose answers all have one reward."""
    beside: bool = False
    """Whether the rows themselves are trained on as well: the sampled answers are then part 0, and the rows part 1."""


@dataclass(frozen=True)
class Scored:
    """The sampled answers of several prompts, [prompts, group] each, float64."""

    rewards: Tensor
    """NaN where it is not known."""
    lengths: Tensor
    """Tokens of each answer."""
    truncated: Tensor
    """Whether each hit the length limit, bool."""
    kl: Tensor
    """The sums Σ_t log π(y_t) - log π_ref(y_t); 0 unless asked for."""


@dataclass(frozen=True)
class At:
    """The progress of training at one batch."""

    step: int
    """The number of optimiser steps done so far."""
    steps: int
    """The number of optimiser steps of the run."""
    training: bool
    """Whether the batch is trained on; otherwise it is only evaluated."""
    teacher: Callable[[Batch], Tensor] | None = None
    """Returns the teacher's logits [rows, T, V], without gradients; one on a server returns log p of each next token
    [rows, T - 1]. Default: there is no teacher."""


@dataclass(frozen=True)
class Objective(Component):
    """A training loss with optional hooks around it; every hook is pure, and only `loss` must be defined."""

    renamed: ClassVar = {
        "counts": "token_counts", "shares": "part_weights", "watch": "eval_batches", "remember": "update_state",
    }  # fmt: skip

    neutral: ClassVar[Mapping[str, Any]] = {}
    """Settings at which it equals supervised fine-tuning, bit for bit."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Further columns of the data that it reads; they are in `example.meta`."""
    reads: ClassVar[tuple[str, ...]] = ("answers",)
    """The rows that it takes: `answers` to be given, `pairs` of a chosen and a rejected one (the rejected one is the
    row under `ALSO`), answers that a label has `judged`, or `texts` that belong near each other (under `ALSO`)."""
    task: ClassVar[str | None] = None
    """The task of the model that it trains. Default: what the rows are for."""
    compares: ClassVar[bool] = False
    """Whether it compares with a reference, whose log-probabilities are the feature `REFERENCE` where known."""
    teaches: ClassVar[bool] = False
    """Whether it learns from a teacher (`At.teacher`)."""
    steered: ClassVar[bool] = False
    """Whether it looks at gradients on rows that are held out (`steer`), so that there have to be some."""
    evaluates: ClassVar[bool] = True
    """Whether its loss is one of rows as they are, so that it can be measured on those held out."""
    sees: ClassVar[bool] = False
    """Whether conversations may have pictures: the model gets every batch as it was collated."""
    whole: ClassVar[bool] = True
    """Whether a step in many batches is the step in one."""
    curves: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """The names of its figures, those that are drawn together side by side."""

    def serves(self, task: str) -> bool:
        """Returns whether it trains a model for a task. Default: for its own, and where rows have one label or an
        answer in writing."""
        return task == self.task or task not in (*STRUCTURED, EMBEDDING)

    def check_form(self, form: Form) -> None:
        """Raises `LuthierError` for a form that it cannot train; called before the weights are loaded."""

    def rows(self, rows: Rows) -> Sequence[Feature]:
        """Returns the rows to batch, before the weights are loaded; raises `LuthierError` for data that do not fit.

        Where it is not overridden, features of many rows stay on disk; else `rows.features` is a list.
        """
        return rows.features

    @property
    def streams(self) -> bool:
        """Whether features are batched as they were encoded, so that they need not all be in memory."""
        return type(self).rows is Objective.rows

    def inputs(self, batch: Batch, at: At) -> Batch:
        """Returns the batch that `loss` is given, made from the collated one."""
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean loss of each part, [parts], 0 where a part has no rows; a scalar means one part."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")

    def loss_and_figures(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Figures]:
        """Returns `loss`, and the figures that `curves` names; one pass gives both."""
        return self.loss(model, batch), {}

    def reference_adapter(self) -> str | None:
        """The adapter or run folder whose model is the reference (None: the base), for one that `compares`."""
        return None

    def teacher_name(self) -> str | None:
        """Who the teacher is, for one that `teaches`: an adapter or run folder, a model, a server (None: the base)."""
        return None

    @property
    def samples(self) -> bool:
        """Whether it trains on answers that are sampled from the model under training (`rollouts`)."""
        return False

    def rollouts(self, step: int, seed: int) -> Rollouts | None:
        """Returns how answers are sampled for the step that follows `step` others; None: it trains on the rows."""
        return None

    def reward_specs(self) -> tuple[str, ...]:
        """Returns what the answers are scored by, as `luthier.training.rollouts` reads it; empty: by nothing."""
        return ()

    def advantages(self, scored: Scored) -> Tensor:
        """Returns the advantage of each sampled answer, [prompts, group], 0 where its reward is not known."""
        return torch.zeros_like(scored.rewards)

    def left_out(self, scored: Scored) -> Tensor:
        """Returns which sampled answers are not learned, bool [prompts, group]. Default: those of unknown reward."""
        return scored.rewards.isnan()

    def observe(self, state: ObjectiveState, step: int, figures: Mapping[str, float]) -> ObjectiveState:
        """Returns the state after the step `step` (from 1), from the means of its figures."""
        return state

    def steers(self, step: int) -> bool:
        """Returns whether the gradients of the parts are looked at (`steer`) before the step that follows `step`."""
        return False

    def steer(self, state: ObjectiveState, lr: float, slopes: Sequence[float]) -> ObjectiveState:
        """Returns the state after that look.

        `slopes` are the products of the gradient of the loss on rows that are held out with the gradient of each part's
        loss on the step's rows, [parts], and `lr` is the step's learning rate.
        """
        return state

    def token_counts(self, batch: Batch, labels: Tensor) -> Tensor:
        """Returns the count over which each mean of `loss` is taken, [parts]. Default: the labels in the loss."""
        return by_part(batch, labels)

    def part_weights(self, counts: Tensor, state: ObjectiveState) -> Tensor:
        """Returns the weight of each part in a step with these `counts`, [parts]. Default: equal for parts present."""
        present = counts.gt(0).float()
        return present / present.sum().clamp(min=1)

    def eval_batches(self, step: int) -> int | None:
        """Returns how many evaluation batches to evaluate after `step` steps. Default: 0; None means all."""
        return 0

    def update_state(
        self, state: ObjectiveState, step: int, losses: list[float], counts: list[float]
    ) -> ObjectiveState:
        """Returns the state after such an evaluation, from means and counts of the parts; checkpoints keep it."""
        return state


def by_part(batch: Batch, values: Tensor) -> Tensor:
    """Sums `values` [rows] over the rows of each part, [parts]."""
    return (values[:, None] * batch[PART]).sum(0) if PART in batch else values.sum()[None]


def labels_of(batch: Batch, shifted: bool) -> Tensor:
    """Counts the labels in the loss of each row, [rows]; with `shifted`, a row's first label has no prediction."""
    labels: Tensor = batch["labels"] if "labels" in batch else batch["start_positions"]
    if labels.dim() == 1:
        return torch.ones(len(labels), dtype=torch.long, device=labels.device)
    return (labels[:, 1:] if shifted else labels).ne(-100).sum(1)
