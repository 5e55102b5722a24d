"""What encoders share: the bound of a row, the classes, and how a feature says what is not learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Feature = dict[str, Any]
IGNORED = -100
"""Label of a token that is not in the loss (PyTorch's `ignore_index`)."""


@dataclass(frozen=True)
class Options:
    """What encoders share."""

    max_length: int | None
    labels: list[str] | None = None
    truncate: bool = False
    positions: int | None = None
    """Tokens that the model can number; None: any."""
    pictures: bool = False
    """Whether what reads the features hands those of conversations to the model."""

    @property
    def most(self) -> int | None:
        """The most tokens of a row."""
        return min((n for n in (self.max_length, self.positions) if n is not None), default=None)

    def bound(self, remedy: str) -> str:
        """Returns what the bound is, and what helps; the model's own cannot be raised."""
        if self.most != self.positions:
            return f"the maximum is {self.most} (raise max_length, or {remedy})"
        return f"the maximum is {self.most}, as the model has no more positions ({remedy})"
