"""Memory: how many bytes of weights fine-tuning added."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from luthier.core.contracts.gate import Gate, Probes
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class MemoryGrowth(Gate):
    """worsening = bytes(θ')/bytes(θ₀) - 1, over parameters and buffers, those of the adapter included

    A merged adapter adds nothing. No rows are read, and the figure is exact.
    """

    paper = "Luthier's own"
    unit: ClassVar[str] = "times the base"
    covers: ClassVar[tuple[str, ...]] = ("cost",)
    exact: ClassVar[bool] = True

    tolerance: float = 0.05
    """Largest share of the base's bytes that may be added."""

    def check(self):
        super().check()
        if self.data is not None:
            raise LuthierError("memory_growth counts bytes of weights and reads no rows; leave data out.")

    def measure(self, subject):
        with subject.before() as model:
            before = size(model)
        with subject.after() as model:
            after = size(model)
        return Probes(*(torch.tensor([each / before]).double() for each in (before, after, before)))


def size(model: nn.Module) -> int:
    """Returns the bytes of all parameters and buffers; what is shared counts once."""
    tensors = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
