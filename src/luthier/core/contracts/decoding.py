"""The contract of a decoding: how the next-token logits of several models are combined into scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from luthier.core.contracts.component import Component


@dataclass(frozen=True)
class Decoding(Component):
    """A rule that combines logits: `scores(logits) -> Tensor`, pure, one step of a batch at a time."""

    roles: ClassVar[Mapping[str, str]] = {}
    """The roles, `{role: description of its model}`; the first role's tokenizer and stop tokens are used."""
    several: ClassVar[tuple[str, ...]] = ()
    """The roles that one or more models may have."""
    draft: ClassVar[str | None] = None
    """The role of a small model that may draft tokens for the others (speculative decoding); None if none."""
    learns: ClassVar[str | None] = None
    """The role whose model takes a step of training on every text in the iterated form; None where there is none."""
    neutral: ClassVar[Mapping[str, Any]] = {}
    """Settings at which the scores are exactly the logits of the first role."""

    @classmethod
    def led(cls) -> str:
        """Returns the name of the first role."""
        return next(iter(cls.roles))

    def check_models(self, counts: Mapping[str, int]) -> None:
        """Raises `LuthierError` where the settings do not go with so many models in each role; asked before any is
        loaded."""

    def scores(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Returns the scores of the next token, [batch, vocabulary]: log-probabilities up to a constant in each row,
        -inf for what must not come. `logits` holds [batch, vocabulary] by role, [models, batch, vocabulary] for those
        of `several`."""
        raise NotImplementedError(f"{type(self).__name__} must define scores")
