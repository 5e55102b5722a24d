"""Runs linear layers that read the same tensor in turn (query, key and value; gate and up) as one.

A probing pass notes who they are. In training, the first of them then computes all, so that x is read once for their
adapters and its gradient is summed in place; the others find their output ready when they are called with the same x.
Who is called with another tensor, or not at all, only makes that work be done for nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(eq=False)
class SharedInput:
    """The input that several layers share, and the list in which the first of them notes the others."""

    x: weakref.ref[Tensor]
    siblings: list[nn.Module]


def note(shared_input: SharedInput | None, module: nn.Module, siblings: list[nn.Module], x: Tensor) -> SharedInput:
    """Notes, in a probing pass, that a layer reads x; `siblings` is its own list, which is emptied."""
    siblings.clear()
    if shared_input is None or shared_input.x() is not x:
        return SharedInput(weakref.ref(x), siblings)
    shared_input.siblings.append(module)
    return shared_input


class PrefetchedOutputs:
    """The outputs of layers that are about to be called with x, computed together with the first."""

    def __init__(self, x: Tensor, outputs: Mapping[nn.Module, Tensor]) -> None:
        self.x, self.version, self.outputs = weakref.ref(x), x._version, dict(outputs)

    def take(self, adapters: nn.Module, x: Tensor) -> Tensor | None:
        """Returns the prefetched output of a layer for x, once; None where there is none."""
        fits = self.x() is x and self.version == x._version
        return self.outputs.pop(adapters, None) if fits else None
