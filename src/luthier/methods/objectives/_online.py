"""What objectives over sampled answers share: how answers are sampled and scored, and the ratio of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.objective import (
    ADVANTAGE,
    OLD_TOKENS,
    PART,
    REFERENCE_TOKENS,
    SAMPLED,
    SAMPLED_FIGURES,
    Batch,
    Figures,
    Objective,
    Rollouts,
)
from luthier.core.contracts.router import names_of
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.core.contracts.objective import Feature, Rows

TOLD = (ADVANTAGE, OLD_TOKENS, REFERENCE_TOKENS, SAMPLED, PART)
"""What the model is not called with."""
CURVES = (
    ("reward",),
    ("entropy",),
    ("kl", "clipped"),
    ("tokens",),
    ("truncated", "empty", "failed", "flat"),
)
"""Figures of objectives over sampled answers, as they are drawn."""


@dataclass(frozen=True)
class Online(Objective):
    """An objective over groups of answers that the model under training has sampled, and that rewards score."""

    reads = ("prompts",)
    columns = ("answer",)
    evaluates = False
    curves = CURVES

    reward: tuple[str, ...] = field(default=("data",), kw_only=True)
    """What answers are scored by, each as [WEIGHT*]SPEC: data (the scorer that the rows call for), a scorer by its
    name (gym, exact_match, number, choice), regex:PATTERN, FILE.py:FUNCTION, or model:RUN, a reward model."""
    group: int = field(default=8, kw_only=True)
    """Answers of each prompt; a batch has that many rows per prompt."""
    max_tokens: int = field(default=128, kw_only=True)
    """The most tokens of a sampled answer."""
    temperature: float = field(default=1.0, kw_only=True)
    """The sampling temperature; the policy is the distribution at that temperature."""
    top_p: float = field(default=1.0, kw_only=True)
    """The nucleus that answers are drawn from; below 1 they are not quite the policy's own."""
    iterations: int = field(default=1, kw_only=True)
    """Optimiser steps that are taken on the same answers."""

    def check(self) -> None:
        if self.group < 2:
            raise LuthierError(
                f"{self.name()}.group is {self.group}: an answer is measured by the others of its prompt, so there "
                "have to be at least 2."
            )
        if not self.reward:
            raise LuthierError(f"{self.name()} has no reward; name one (reward), such as data, gym or regex:PATTERN.")
        self.within("max_tokens", 1)
        self.above("temperature", 0)
        self.above("top_p", 0, 1)
        self.within("iterations", 1)

    def check_form(self, form):
        refuse_tasks(self, form)

    @property
    def samples(self):
        return True

    def reward_specs(self):
        return self.reward

    def rollouts(self, step, seed):
        return Rollouts(self.group, self.max_tokens, self.temperature, self.top_p, self.iterations)

    def rows(self, rows):
        check_room(rows, self.max_tokens)
        return rows.features

    def loss(self, model, batch):
        return self.loss_and_figures(model, batch)[0]


@dataclass(frozen=True)
class Policies:
    """Sampled answers under the policy, [rows, T - 1] each, 0 outside the answers."""

    logs: Tensor
    """The log-probabilities log π(y_t)."""
    entropy: Tensor
    mask: Tensor
    """1 for the tokens that are learned."""
    old: Tensor
    """log π_old(y_t), of the policy that sampled them."""
    reference: Tensor | None
    """log π_ref(y_t), where the batch has it."""

    @property
    def ratio(self) -> Tensor:
        """Returns π(y_t) / π_old(y_t)."""
        return (self.logs - self.old).exp()

    @property
    def kl(self) -> Tensor:
        """π_ref/π - log π_ref/π - 1 of each token, an estimate of KL(π ‖ π_ref); 0 without a reference."""
        if self.reference is None:
            return self.logs * 0
        gap = (self.reference - self.logs) * self.mask
        return gap.exp() - gap - 1


def policies(model: nn.Module, batch: Batch, temperature: float) -> Policies:
    """Returns the answers of a batch under the policy; without `OLD_TOKENS` it is the one that sampled them."""
    from luthier.methods.log_probs import token_log_probs

    inputs = {key: value for key, value in batch.items() if key not in TOLD}
    logs, entropy = token_log_probs(model, inputs, temperature, entropy=True)
    told = {key: batch[key][:, :-1].to(logs.dtype) for key in (OLD_TOKENS, REFERENCE_TOKENS) if key in batch}
    mask = batch["labels"][:, 1:].ne(-100).to(logs.dtype)
    return Policies(logs, entropy, mask, told.get(OLD_TOKENS, logs.detach()), told.get(REFERENCE_TOKENS))


def figures(batch: Batch, found: Policies, clipped: Tensor) -> Figures:
    """Figures of the sampled answers, and of the policy over their tokens; `clipped` are 1 where the ratio was."""
    learned = found.mask.bool()
    told = dict(zip(SAMPLED_FIGURES, batch[SAMPLED].unbind(1), strict=True))
    told = {name: values[values.isfinite()] for name, values in told.items()}
    kl = {} if found.reference is None else {"kl": found.kl.detach()[learned]}
    return {**told, "entropy": found.entropy[learned], **kl, "clipped": clipped[learned].to(found.mask.dtype)}


def mean_of(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens of each row, [rows], 0 where a row has none."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def learned_rows(labels: Tensor) -> Tensor:
    """Counts the rows of which something is learned, from their numbers of labels [rows]; [1]."""
    return labels.gt(0).sum()[None]


def refuse_tasks(objective: Objective, form: Any) -> None:
    """Raises for a form that goes by the task of a row, which the engine is not told."""
    if len(names_of(form)) > 1:
        raise LuthierError(
            f"{form.name()} goes by the task of each row, and {objective.name()} samples answers by the serving "
            "engine, which does not tell tasks; take another form."
        )


def check_room(rows: Rows, most: int) -> None:
    """Raises for rows that are no conversations, and for prompts behind which `most` tokens have no room."""
    if bare := [example.row for example in rows.examples.rows if example.messages is None]:
        raise LuthierError(
            f"{len(bare)} rows of {rows.examples.source} are texts without a prompt to answer (the first: {bare[0]})."
        )
    lengths = {feature["row"]: answer_at(feature["labels"]) for feature in rows.features}
    if long := [row for row, length in lengths.items() if length + most > rows.max_length]:
        raise LuthierError(
            f"the prompts of {len(long)} rows of {rows.examples.source} (the first: {long[0]}, with "
            f"{lengths[long[0]]} tokens) leave no room for answers of {most} tokens: {rows.max_length} are allowed in "
            "all. Raise max_length, or lower max_tokens."
        )


def answer_at(labels: Sequence[int]) -> int:
    """Returns where the last answer of a row begins, from its labels."""
    last = max(i for i, label in enumerate(labels) if label != -100)
    return next((i + 1 for i in range(last, -1, -1) if labels[i] == -100), 0)


def prompt_of(feature: Feature) -> list[int]:
    """Returns the tokens of a row before its last answer."""
    return list(feature["input_ids"][: answer_at(feature["labels"])])
