"""What one adapter asks of a shared pass, and what it gets back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from luthier.core.contracts.objective import Batch, Figures, Objective, labels_of
from luthier.core.errors import LuthierError

LogProbLoss = Callable[[list[Tensor]], Tensor]
"""A loss of log-probabilities: [T_i] of each row, in the order of the rows, to a scalar."""
IGNORED = -100
"""The target of a token that is in no loss; its log-probability is 0."""


@dataclass(frozen=True)
class Row:
    """One row of tokens, and what each of them is to be followed by.

    `targets[t]` is the token whose log-probability is taken behind `tokens[0..t]`, or `IGNORED`; without targets, it
    is the next token, and behind the last one there is none.
    """

    tokens: Sequence[int]
    targets: Sequence[int] | None = None
    prompt: int | None = None
    """Tokens of the prompt, which forms with positions (f7+l7) edit. Default: those ahead of the first target that is
    not ignored, or all where it is the first token's; an invocation (from:5.6) is then looked for in the whole row."""

    def wanted(self) -> list[int]:
        """Returns the target of every token."""
        return [*self.tokens[1:], IGNORED] if self.targets is None else list(self.targets)

    def end(self) -> int:
        """Returns the number of tokens of the prompt."""
        if self.prompt is not None:
            return self.prompt
        first = next((t for t, target in enumerate(self.wanted()) if target != IGNORED), 0)
        return first + 1 if first else len(self.tokens)


@dataclass(frozen=True)
class Work:
    """The rows of one adapter in a shared pass, and their loss."""

    name: str | None
    """The adapter; None is the base, which has log-probabilities and no gradient."""
    rows: Sequence[Row]
    loss: LogProbLoss
    """L of the rows' log-probabilities. Nothing is divided: what it returns is what is differentiated."""

    def check(self, words: int, longest: int | None) -> None:
        """Raises `LuthierError` for rows that the model cannot take: `words` in its vocabulary, `longest` tokens."""
        if not self.rows:
            raise LuthierError(f"the work of {self.name!r} has no rows; give it at least one.")
        for index, row in enumerate(self.rows):
            self._check(index, row, words, longest)

    def _check(self, index: int, row: Row, words: int, longest: int | None) -> None:
        where, count = f"row {index} of {self.name!r}", len(row.tokens)
        if not count or (longest is not None and count > longest):
            most = "" if longest is None else f" and at most {longest}"
            raise LuthierError(f"{where} has {count} tokens; expected at least 1{most}.")
        if row.targets is not None and len(row.targets) != count:
            raise LuthierError(f"{where} has {count} tokens and {len(row.targets)} targets; expected one for each.")
        if strange := next((t for t in row.tokens if not 0 <= t < words), None):
            raise LuthierError(f"{where} holds the token {strange}; this model's are 0 to {words - 1}.")
        if strange := next((t for t in row.wanted() if t != IGNORED and not 0 <= t < words), None):
            raise LuthierError(f"{where} has the target {strange}; this model's tokens are 0 to {words - 1}.")
        if row.prompt is not None and not 0 <= row.prompt <= count:
            raise LuthierError(f"{where} has a prompt of {row.prompt} tokens; it has {count}.")


@dataclass(frozen=True)
class Batched:
    """A batch of one adapter in a shared pass, as its objective takes it."""

    name: str
    batch: Batch
    """What `Objective.inputs` made of a collated batch: input_ids, attention_mask and labels, padded behind."""
    objective: Objective

    def loss(self, model: nn.Module) -> tuple[Tensor, Figures]:
        """Returns L, the mean loss of the parts by their weights in this batch, and figures."""
        objective = self.objective
        counts = objective.token_counts(self.batch, labels_of(self.batch, True))
        weights = objective.part_weights(counts, {}) * counts / counts.clamp(min=1)
        means, figures = objective.loss_and_figures(model, self.batch)
        return (means * weights.to(means.dtype)).sum(), figures


@dataclass
class Outcome:
    """What a shared pass gave one piece of work."""

    name: str | None
    loss: float = math.nan
    log_probs: list[Tensor] = field(default_factory=list)
    """The log-probability of each target, [T_i] for each row, 0 where a target is ignored; without gradients.

    Empty for `Batched`."""
    figures: Figures = field(default_factory=dict)
    """What an objective tells beside its loss."""
    error: str | None = None
    """Why this work has no gradient: its rows or its loss are wrong, or it diverged. Other works are as without it."""
    diverged: bool = False
    """Whether the loss was not a finite number."""


def padded(rows: Sequence[Row], device: torch.device | str) -> dict[str, Tensor]:
    """Returns input_ids, attention_mask and targets of rows, [rows, T] each, padded behind."""
    width = max(len(row.tokens) for row in rows)
    fill = lambda values, blank: [*values, *[blank] * (width - len(values))]  # noqa: E731
    made = {
        "input_ids": [fill(row.tokens, 0) for row in rows],
        "attention_mask": [fill([1] * len(row.tokens), 0) for row in rows],
        "targets": [fill(row.wanted(), IGNORED) for row in rows],
    }
    return {key: torch.tensor(values, device=device) for key, values in made.items()}
