"""The contract of an examination: a model before and after fitting becomes numbers, beside those of a null."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import nn

from luthier.core.contracts.combination import Place
from luthier.core.contracts.component import Component
from luthier.core.numerics.delta import Delta

T = TypeVar("T")
Batch = Mapping[str, Any]
"""What the model is called with, `labels` included."""


@dataclass(frozen=True)
class Change:
    """One tensor of the base and what fitting added to it; neither is read before it is asked for."""

    place: Place
    delta: Callable[[], Delta]


def unwatched(text: str, items: Sequence[T]) -> Iterable[T]:
    """The items, without a word of progress."""
    return items


@dataclass(frozen=True)
class Pair:
    """One model before and after fitting.

    Only one of the two contexts is open at a time; both may yield the same module, with an adapter in the second.
    """

    changes: Callable[[], Sequence[Change]]
    """The tensors that changed; raises `LuthierError` where no weight can express what fitting did."""
    before: Callable[[], AbstractContextManager[nn.Module]]
    after: Callable[[], AbstractContextManager[nn.Module]]
    data: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    """Batches by the name of their data set."""
    watch: Callable[[str, Sequence[Any]], Iterable[Any]] = unwatched
    """Hands on a sequence and shows how far it is."""


Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """What an examination found, and what the null shows: the same numbers where nothing was learnt."""

    effect: float
    """Size of what was found; 0 where a model is examined against itself."""
    column: str
    """Which of the numbers of a place tells most: the one that is drawn."""
    places: Mapping[str, Numbers]
    """Numbers of each site, block or data set."""
    null: Mapping[str, Numbers]
    """The same numbers under the null."""
    layers: Mapping[str, int | None]
    """Index of the block of each place; None for places outside the blocks."""
    summary: Numbers
    null_summary: Numbers
    baseline: str
    """What the null is."""
    verdict: str
    """The finding in one sentence."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "effect": self.effect,
            "column": self.column,
            "verdict": self.verdict,
            "baseline": self.baseline,
            "summary": dict(self.summary),
            "null_summary": dict(self.null_summary),
            "layers": dict(self.layers),
            "places": {name: dict(numbers) for name, numbers in self.places.items()},
            "null": {name: dict(numbers) for name, numbers in self.null.items()},
        }


@dataclass(frozen=True)
class Examination(Component):
    """A measurement of what fitting did: `measure(pair) -> Report`. It leaves the models as they were.

    Draws follow from settings, so a measurement repeats itself exactly.
    """

    reads: ClassVar[bool] = False
    """It needs data."""

    def measure(self, pair: Pair) -> Report:
        """What fitting did to the model, and what the null shows."""
        raise NotImplementedError(f"{type(self).__name__} must define measure")
