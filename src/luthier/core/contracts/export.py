"""The contract of an export: a format writes what is attached to a model as a folder for other software."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from luthier.core.contracts.component import Component
from luthier.core.errors import LuthierError


@dataclass(frozen=True, eq=False)
class Outgoing:
    """What is exported: one adapter on its base, in eval mode, and the base's tokenizer or processor."""

    model: nn.Module
    name: str
    """The name of the adapter on the model."""
    processor: Any = None
    """The base's tokenizer or processor; only formats that hold the whole model ask for it."""


@dataclass(frozen=True)
class Format(Component):
    """An export format: `write(outgoing, folder)` fills an empty folder, which is kept only if nothing raises."""

    base_dtype: ClassVar[str] = "float32"
    """The dtype to load the base in: float32 where only the change is exported, auto where the base is as well."""
    loss: ClassVar[str] = "not exact"
    """A word for what happened to places that are not exact, such as `rounded`."""

    def check_base(self, model: nn.Module, processor: Any) -> None:
        """Raises `LuthierError` for a base that the format cannot hold; called before any work is done."""

    def told(self, lost: Mapping[str, float]) -> str:
        """Returns a sentence about what `write` returned, where that is not empty."""
        place = max(lost, key=lost.__getitem__)
        many = f"{len(lost)} places were" if len(lost) > 1 else "One place was"
        return f"{many} {self.loss}; the largest relative error is {lost[place]:.2g} ({place})."

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        """Writes the files and returns `{place: relative error}` of what is not exact; the model stays as it was.

        Raises `LuthierError` for an adapter that the format cannot express, with the reason and what would do.
        """
        raise NotImplementedError(f"{type(self).__name__} must define write")


def check_truncation(rank: int | None, tolerance: float) -> None:
    """Raises for a rank below 1 or a tolerance that is not a relative error."""
    if rank is not None and rank < 1:
        raise LuthierError(f"rank is {rank}; expected a whole number of at least 1.")
    if not 0 <= tolerance <= 1:
        raise LuthierError(f"tolerance is {tolerance}; expected a relative error from 0 to 1.")
    if tolerance and rank is None:
        raise LuthierError(
            f"tolerance is {tolerance}, of a truncation to a rank, and no rank is given; give one, or leave it out."
        )
