"""The contract of a decoding: the next-token logits of several models become the scores that tokens are chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from luthier.core.contracts.component import Component


@dataclass(frozen=True)
class Decoding(Component):
    """Arithmetic of logits: `scores(logits) -> Tensor`, pure, one step of a batch at a time."""

    roles: ClassVar[Mapping[str, str]] = {}
    """{role: what its model is}. The first is the model that is led: its tokenizer and its stops count."""
    several: ClassVar[tuple[str, ...]] = ()
    """Roles that one or more models may play."""
    draft: ClassVar[str | None] = None
    """The role, of a small model, that may write ahead of the others; None if there is none."""
    neutral: ClassVar[Mapping[str, Any]] = {}
    """Settings at which the scores are the logits of the first role, exactly."""

    @classmethod
    def led(cls) -> str:
        """The first role."""
        return next(iter(cls.roles))

    def check_models(self, counts: Mapping[str, int]) -> None:
        """Raises `LuthierError` where the settings do not go with so many models in each role; asked before any is
        loaded."""

    def scores(self, logits: Mapping[str, Tensor]) -> Tensor:
        """The scores of the next token, [batch, vocabulary]: its log-probabilities but for a constant in each row,
        -inf for what must not come. `logits` holds [batch, vocabulary] by role, [models, batch, vocabulary] for those
        of `several`."""
        raise NotImplementedError(f"{type(self).__name__} must define scores")
