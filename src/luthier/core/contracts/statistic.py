"""The contract of a statistic: what a calibration pass measures at a site, one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from luthier.core.contracts.component import Component
from luthier.core.errors import LuthierError

S = TypeVar("S", bound="Statistic")


@dataclass(frozen=True)
class Statistic(Component):
    """A streaming statistic of activations or gradients: `result(update(update(begin(), …), …))`.

    What it reads says which places it is measured at, and what `update` gets:

    inputs      every site: what enters its module, x [..., d_in], and mask [...], True where x counts
    states      every block boundary: the hidden state x [batch, ..., d], and mask [batch, ...]
    gradients   every site: dL/dW [d_out, d_in] of the batch's mean loss; the mask is None
    """

    reads: ClassVar[Literal["inputs", "states", "gradients"]] = "inputs"

    def begin(self) -> Any:
        """Returns the state before the first batch."""
        raise NotImplementedError(f"{type(self).__name__} must define begin")

    def update(self, held: Any, x: Tensor, mask: Tensor | None) -> Any:
        """Returns the state after one more batch; x is detached and belongs to the model."""
        raise NotImplementedError(f"{type(self).__name__} must define update")

    def done(self, held: Any) -> bool:
        """Returns whether further batches would change nothing that matters; the pass ends when all are done."""
        return False

    def result(self, held: Any) -> dict[str, Tensor]:
        """Returns the tensors, by the names under which components find them, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must define result")

    def join(self: S, other: S) -> S:
        """Joins two statistics into one that serves both; raises `LuthierError` when none can."""
        if self == other:
            return self
        raise LuthierError(f"two components ask for different statistics: {self} and {other}.")


def rows_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the rows of x [..., d] that the mask keeps, [n, d]."""
    return x.reshape(-1, x.shape[-1]) if mask is None else x[mask]


def joined(statistics: list[Statistic] | tuple[Statistic, ...]) -> list[Statistic]:
    """Joins statistics so that there is one of each name."""
    found: dict[str, Statistic] = {}
    for each in statistics:
        before = found.get(each.name())
        found[each.name()] = each if before is None else before.join(each)
    return list(found.values())
