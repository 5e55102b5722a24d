"""The contract of an examination: it measures a model before and after fine-tuning, and the same under a null."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import nn

from luthier.core.contracts.combination import Place
from luthier.core.contracts.component import Component
from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta

T = TypeVar("T")
Batch = Mapping[str, Any]
"""The model's arguments by name, `labels` included."""


@dataclass(frozen=True)
class Change:
    """One tensor of the base and what fine-tuning added to it; both are read lazily."""

    place: Place
    delta: Callable[[], Delta]


def unwatched(text: str, items: Sequence[T]) -> Iterable[T]:
    """Returns the items without showing progress."""
    return items


def no_texts(*_: Any) -> Any:
    """Raises `LuthierError`: batches without their rows cannot be asked about."""
    raise LuthierError("this examination asks the model about rows of text; give data with prompts and answers.")


@dataclass(frozen=True)
class Pair:
    """One model before and after fine-tuning.

    Only one of the two contexts is open at a time; both may yield the same module, with an adapter in the second.
    """

    changes: Callable[[], Sequence[Change]]
    """The tensors that changed; raises `LuthierError` where no weight can express the change."""
    before: Callable[[], AbstractContextManager[nn.Module]]
    after: Callable[[], AbstractContextManager[nn.Module]]
    data: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    """The batches, by the name of their data set."""
    watch: Callable[[str, Sequence[Any]], Iterable[Any]] = unwatched
    """Iterates over a sequence and shows its progress."""
    examples: Mapping[str, Examples] = field(default_factory=dict)
    """The rows behind the batches, by the name of their data set."""
    batches: Callable[[Sequence[Example]], Sequence[Batch]] = no_texts
    """Examples as batches of the model's arguments, `labels` included."""
    write: Callable[[nn.Module, Sequence[Example], int], Sequence[str]] = no_texts
    """The answers that a model writes to prompts, greedily, of at most so many tokens."""


Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """The result of an examination beside that of its null, where nothing was learnt."""

    effect: float
    """The size of the effect; 0 where a model is examined against itself."""
    column: str
    """The name of the main number of a place, which is plotted."""
    places: Mapping[str, Numbers]
    """The numbers of each site, block or data set."""
    null: Mapping[str, Numbers]
    """The same numbers under the null."""
    layers: Mapping[str, int | None]
    """The index of the block of each place; None for places outside the blocks."""
    summary: Numbers
    null_summary: Numbers
    baseline: str
    """A description of the null."""
    verdict: str
    """The finding in one sentence."""
    edges: Mapping[str, float] = field(default_factory=dict)
    """Effects of one place on another, `{"from > to": effect}`, where places form a circuit; it is drawn as one."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
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
            **({"edges": dict(self.edges)} if self.edges else {}),
        }


@dataclass(frozen=True)
class Examination(Component):
    """A measurement of what fine-tuning did: `measure(pair) -> Report`. It leaves the models as they were.

    Draws follow from settings, so a measurement repeats itself exactly.
    """

    reads: ClassVar[bool] = False
    """Whether it needs data."""
    asks: ClassVar[bool] = False
    """Whether it has the model write answers, so that the rows must be prompts with answers."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Further columns of the rows that it reads, into `Example.meta`."""

    def measure(self, pair: Pair) -> Report:
        """Measures what fine-tuning did to the model, and what the null shows."""
        raise NotImplementedError(f"{type(self).__name__} must define measure")
