"""What is done to the logits of a row before its next token is chosen: penalties, biases, and what a grammar allows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.engine.grammar import Constraint, forbidden

BIAS = 100.0
"""The largest bias of a token; -100 is as good as forbidding it."""


@dataclass(frozen=True)
class Shaping:
    """How a row's logits are changed, and which tokens are left to draw from. The defaults change nothing."""

    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0: from all."""
    min_p: float = 0.0
    """Draw from tokens whose probability is at least this share of the likeliest one's."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time that the answer has it already."""
    presence_penalty: float = 0.0
    """Taken off a token's logit once the answer has it."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens of the prompt and the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token and what is added to its logit."""

    @property
    def changes(self) -> bool:
        """Whether logits change at all."""
        return bool(self.penalises or self.logit_bias)

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens came before."""
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1)

    def check(self, tokens: int) -> None:
        """Raises `LuthierError` for settings out of range, for a model of so many tokens."""
        _within("top_k", self.top_k, 0, math.inf)
        _within("min_p", self.min_p, 0, 1)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        if not 0 < self.repetition_penalty < math.inf:
            raise LuthierError(f"repetition_penalty is {self.repetition_penalty}; expected above 0 (1: none).")
        for token, bias in self.logit_bias:
            if not 0 <= token < tokens:
                raise LuthierError(f"logit_bias: token id {token} is none of the model's {tokens}.")
            _within(f"logit_bias of token {token}", bias, -BIAS, BIAS)


def _within(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise LuthierError(f"{what} is {value}; expected {least} to {most}.")


PLAIN = Shaping()


class Shaper:
    """The state of one row: which tokens it has had, and where in its grammar it stands."""

    def __init__(self, shaping: Shaping, prompt: Sequence[int], constraint: Constraint | None) -> None:
        self.shaping, self.constraint = shaping, constraint
        self._answer: Counter[int] = Counter()
        self._seen = dict.fromkeys(prompt) if shaping.repetition_penalty != 1 else {}

    def took(self, token: int) -> None:
        """The row has got a token."""
        if self.shaping.penalises:
            self._answer[token] += 1
            self._seen[token] = None
        if self.constraint is not None:
            self.constraint.took(token)

    def change(self, logits: Tensor) -> None:
        """Changes a row's logits [vocabulary] in place: repetition, frequency, presence, bias, in this order."""
        shaping, column = self.shaping, _column(logits)
        if shaping.repetition_penalty != 1 and self._seen:
            index = column(list(self._seen), torch.long)
            old, r = logits[index], shaping.repetition_penalty
            logits[index] = torch.where(old > 0, old / r, old * r)
        if self._answer and (shaping.frequency_penalty or shaping.presence_penalty):
            counts = column(list(self._answer.values()), logits.dtype)
            less = shaping.frequency_penalty * counts + shaping.presence_penalty
            logits[column(list(self._answer), torch.long)] -= less
        if shaping.logit_bias:
            tokens, biases = zip(*shaping.logit_bias, strict=True)
            logits[column(list(tokens), torch.long)] += column(list(biases), logits.dtype)


def _column(logits: Tensor):
    return lambda values, dtype: torch.tensor(values, dtype=dtype, device=logits.device)


def shaped(logits: Tensor, shapers: Sequence[Shaper | None]) -> Tensor:
    """Returns the logits [rows, vocabulary] as the rows' requests want them; those that came stay as they are.

    Tokens that a row's grammar forbids get -inf.
    """
    changing = {i: s for i, s in enumerate(shapers) if s is not None and s.shaping.changes}
    bound = [None if s is None else s.constraint for s in shapers]
    if changing:
        logits = logits.clone()
        for row, shaper in changing.items():
            shaper.change(logits[row])
    if any(each is not None for each in bound):  # one pass for all rows: a vocabulary is wide
        logits = logits.masked_fill(forbidden(bound, logits.shape[1]).to(logits.device), -torch.inf)
    return logits
