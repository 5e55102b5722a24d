"""The contract of an unlearning: what is lowered so that a model is as if some rows had never been learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.core.contracts.component import Component


@dataclass(frozen=True)
class Outputs:
    """What a model says to some rows: of a classifier a place for each row, of a language model one for each label."""

    logits: Tensor
    """Logits [places, classes], in float32 at least."""
    labels: Tensor
    """Labels [places], the classes or tokens that were learned."""
    before: Tensor | None = None
    """The logits before unlearning, where the method `remembers`."""
    targets: Tensor | None = None
    """The logits to be matched, where the method `matches`."""


@dataclass(frozen=True)
class Unlearning(Component):
    """A loss over a batch of rows to forget and one of rows to retain, as many, which are drawn at random."""

    remembers: ClassVar[bool] = False
    """Whether it needs the logits of the model before."""
    matches: ClassVar[bool] = False
    """Whether it matches predicted outputs, so that the change of outputs without the rows is predicted first."""
    retrains: ClassVar[bool] = False
    """Whether it is training on the retained rows alone; `loss` is then not asked for."""

    def loss(self, forget: Outputs, retain: Outputs) -> Tensor:
        """Returns the scalar that is lowered."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")
