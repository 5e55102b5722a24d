"""The contract of a combination: how several changes of one base are merged into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from luthier.core.contracts.component import Component
from luthier.core.contracts.site import Site
from luthier.core.numerics.delta import Delta


@dataclass(frozen=True)
class Place:
    """One tensor of the base, as a combination is given it.

    Tensors come one after the other, so a method knows this one and, where it `surveys`, sums over all of them.
    A linear layer's weight is [d_out, d_in] whatever the model stores.
    """

    site: Site
    """Its path, its widths and its block (`site.layer`; None outside the blocks)."""
    shape: tuple[int, ...]
    depth: int
    """The number of blocks in the stack that holds it (outside the blocks: in the deepest stack)."""
    base: Callable[[], Tensor]
    """Reads the base weight W0, of `shape`."""
    vocabulary: bool = False
    """Whether its rows are tokens: an embedding table or an output head."""
    totals: Mapping[str, float] = field(default_factory=dict)
    """The numbers that `survey` returned, summed over all tensors."""


@dataclass(frozen=True)
class Combination(Component):
    """A rule that merges weight deltas: `merge(deltas, weights, at) -> Delta`, pure, one tensor at a time.

    `deltas` holds one delta of each input at this tensor (of no part where an input leaves it alone), `weights` the
    numbers that the user gave them, 1 each unless told. The methods multiply by them: a method that averages may
    divide by them as well.
    """

    commutes: ClassVar[bool] = True
    """Whether the order of the inputs does not matter."""
    moves: ClassVar[bool] = False
    """Whether the inputs may have been fitted on another base than the one that the result is for."""
    surveys: ClassVar[bool] = False
    """Whether it reads all tensors once before it merges the first (see `survey`)."""
    neutral: ClassVar[Mapping[str, Any]] = {}
    """Settings at which a single input of weight 1 is returned unchanged."""

    def fits(self, shape: tuple[int, ...], at: Place) -> bool:
        """Returns whether a delta of this shape may be added there; asked before anything is read."""
        return shape == at.shape

    def survey(self, deltas: Sequence[Delta], weights: Sequence[float], at: Place) -> dict[str, float]:
        """Returns numbers that are summed over all tensors and given to `merge` as `at.totals`."""
        return {}

    def merge(self, deltas: Sequence[Delta], weights: Sequence[float], at: Place) -> Delta:
        """Returns the merged change of this tensor, of shape `at.shape`."""
        raise NotImplementedError(f"{type(self).__name__} must define merge")


def weighted(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """Returns Σ w_i δ_i; low-rank deltas are stacked and sparse ones united, so no structure is lost."""
    total = Delta.zero(*deltas[0].shape)
    for delta, weight in zip(deltas, weights, strict=True):
        total = total + weight * delta
    return total


def examined(at: Place) -> bool:
    """Returns whether a tensor is examined: the matrices of the blocks, but neither embeddings nor new heads."""
    return len(at.shape) == 2 and at.site.layer is not None and not at.vocabulary
