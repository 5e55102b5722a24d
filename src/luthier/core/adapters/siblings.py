"""Linear layers that read the same tensor one after the other (query, key and value; gate and up) run as one.

A probing pass notes who they are. In training, the first of them then computes all, so that x is read once for their
adapters and its gradient is summed in place; the others find their output ready when they are called with the same x.
Who is called with another tensor, or not at all, only makes that work be done for nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from luthier.core.adapters.container import Adapters
    from luthier.core.adapters.slot import State


@dataclass(eq=False)
class Reading:
    """A tensor that is being read, and the first layer that read it."""

    x: weakref.ref[Tensor]
    first: Adapters


def note(state: State, module: nn.Module, adapters: Adapters, x: Tensor) -> None:
    """Notes, in a probing pass, that a layer reads x."""
    adapters.siblings = []
    if state.reading is not None and state.reading.x() is x:
        state.reading.first.siblings.append(module)
    else:
        state.reading = Reading(weakref.ref(x), adapters)


class Ahead:
    """Outputs of layers that are about to be called with x."""

    def __init__(self, x: Tensor, outputs: Mapping[Adapters, Tensor]) -> None:
        self.x, self.version, self.outputs = weakref.ref(x), x._version, dict(outputs)

    def take(self, adapters: Adapters, x: Tensor) -> Tensor | None:
        """The output of a layer for x, once."""
        fits = self.x() is x and self.version == x._version
        return self.outputs.pop(adapters, None) if fits else None

    def __reduce__(self):
        return type(None), ()  # a copy of the model is under no pass
