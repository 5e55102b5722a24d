"""The specification of an unlearning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.component import check_fields
from luthier.core.contracts.unlearning import Unlearning
from luthier.core.errors import LuthierError
from luthier.training.unlearning.klom import LEAST


@dataclass(frozen=True)
class Unlearn:
    """An adapter, rows to forget and rows to retain, and how the first are forgotten."""

    adapter: str
    """The run folder of `luthier train` whose adapter is to forget."""
    forget: str
    """Rows to forget: some of those that the adapter was trained on."""
    retain: str
    """Rows to retain: the others."""
    unlearning: Unlearning
    out: str = "unlearned"
    """The folder to write."""
    test: str | None = None
    """Rows that were never learned, for the membership test and the accuracy on new rows."""
    model: str | None = None
    """The base. Default: the run's own."""
    steps: int = 50
    """Optimiser steps."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    batch: int = 16
    """Rows to forget in a step, and as many retained ones."""
    save_every: int = 10
    """Steps between checkpoints."""
    models: int = 0
    """Models of each kind that KLOM is measured over, 0 or at least 3: trained on all rows, unlearned, retrained, and
    retrained again for the null, each with a seed of its own."""
    seed: int = 0
    """The seed of the rows of each step, and of the projection."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise LuthierError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.models and self.models < LEAST:
            raise LuthierError(f"models is {self.models}; expected 0 (KLOM is not measured) or at least {LEAST}.")
        if not self.lr > 0:
            raise LuthierError(f"lr is {self.lr}; expected a number above 0.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON holds them."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        named = {"name": self.unlearning.name(), "settings": self.unlearning.to_dict()}
        return plain | {"unlearning": named}
