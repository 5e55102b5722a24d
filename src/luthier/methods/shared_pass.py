"""Stands for a model in a loss whose forward passes are shared with those of other losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class SharedPass(nn.Module, ABC):
    """A model of which a loss sees its own rows alone.

    `model(**batch)` gives `.logits`; functions that go through a large vocabulary in chunks ask for the numbers that
    they want instead (`token_log_probs`), so that no logits of a whole batch exist.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        vars(self)["inner"] = model  # no child: what walks over modules is not to meet the model twice
        self.config = model.config
        self.training = model.training

    inner: nn.Module
    """The model itself, for passes that are not shared (those of a reference, without gradients)."""

    @abstractmethod
    def token_log_probs(
        self, batch: Mapping[str, Any], temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns what `luthier.methods.log_probs.token_log_probs` does."""

    @abstractmethod
    def forward(self, **batch: Any) -> Any:
        """Returns the model's output on these rows, with their `logits`."""
