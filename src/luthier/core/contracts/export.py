"""The contract of an export: what is attached to a model is written as a folder of another format."""

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
    """What leaves: one adapter on its base, in evaluation mode, and what prepares the base's inputs."""

    model: nn.Module
    name: str
    """The adapter's, on the model."""
    processor: Any = None
    """The base's tokenizer or processor; only formats that hold the whole model ask for it."""


@dataclass(frozen=True)
class Format(Component):
    """A format: `write(outgoing, folder)`. The folder is empty, and stands only if nothing is raised."""

    base_dtype: ClassVar[str] = "float32"
    """Dtype to load the base in: float32 where the change alone leaves, auto where the base leaves as well."""
    loss: ClassVar[str] = "not exact"
    """What became of the places that lost something, in a word."""

    def check_base(self, model: nn.Module, processor: Any) -> None:
        """Raises `LuthierError` for a base that the format has no place for; asked before any work is done."""

    def told(self, lost: Mapping[str, float]) -> str:
        """A sentence on what `write` returned, where that is something."""
        place = max(lost, key=lost.__getitem__)
        many = f"{len(lost)} places were" if len(lost) > 1 else "One place was"
        return f"{many} {self.loss}; the largest relative error is {lost[place]:.2g} ({place})."

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        """Writes the files and returns `{place: relative error}` of what is not exact; the model stays as it was.

        Raises `LuthierError` for an adapter that the format cannot express, with the reason and what would do.
        """
        raise NotImplementedError(f"{type(self).__name__} must define write")


def check_truncation(rank: int | None, tolerance: float) -> None:
    """Raises for a rank below 1 or a tolerance that is no relative error."""
    if rank is not None and rank < 1:
        raise LuthierError(f"rank is {rank}; expected a whole number of at least 1.")
    if not 0 <= tolerance <= 1:
        raise LuthierError(f"tolerance is {tolerance}; expected a relative error from 0 to 1.")
