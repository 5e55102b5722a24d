"""The contract of an objective: a loss on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from luthier.core.component import Component


@dataclass(frozen=True)
class Objective(Component):
    """What training lowers: `loss(model, batch) -> scalar`, pure but for the model's own state."""

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The loss of one batch of the model's arguments (labels included), a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")
