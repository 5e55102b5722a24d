"""The contract of a format of other software: its folders are read as forms, or adapters are written as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.core.contracts.component import Component
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError


@dataclass(frozen=True, eq=False)
class Outgoing:
    """What leaves: one adapter on its base, in evaluation mode, and what prepares the base's inputs."""

    model: nn.Module
    name: str
    """The adapter's, on the model."""
    processor: Any = None
    """The base's tokenizer or processor; only formats that hold the whole model ask for it."""


@dataclass(frozen=True, eq=False)
class Found:
    """One form on its sites, which are of one kind or of those that a bare name can mean."""

    form: Form
    kind: str
    """The kind of the sites: affine (embeddings included), input, stream, param, cache, or conv (weights of
    convolutions)."""
    tensors: dict[str, dict[str, Tensor]]
    """The tensors, {path of the site: {parameter: tensor}}."""
    ranks: dict[str, int] = field(default_factory=dict)
    """The ranks, {path: rank}, where they differ."""


@dataclass(frozen=True)
class Format(Component):
    """A format of other software. A class defines `fits` and `read`, or `write`, or all three.

    `fits(folder)` tells the folders of the format by what they hold, and `read(folder, model)` gives the forms in one.
    `write(outgoing, folder)` writes an adapter into an empty folder, which stands only if nothing is raised. No code of
    a folder is run, and a file with names or expressions of somebody else's is checked before it is used.
    """

    base_dtype: ClassVar[str] = "float32"
    """Dtype to load the base in for writing: float32 where the change alone leaves, auto where the base leaves too."""
    loss: ClassVar[str] = "not exact"
    """What became of the places that lost something, in a word."""
    for_reading: ClassVar[tuple[str, ...]] = ()
    """Settings that `read` uses; `write` uses the others."""

    @classmethod
    def reads(cls) -> bool:
        """Returns whether folders of this format can be read."""
        return cls.read is not Format.read

    @classmethod
    def writes(cls) -> bool:
        """Returns whether adapters can be written in this format."""
        return cls.write is not Format.write

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Whether a folder is of this format; no folder is of one that is only written."""
        return False

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        """The forms with their tensors, for a base. Raises `LuthierError` for damage and for what has no equal here."""
        raise NotImplementedError(f"{type(self).__name__} must define read")

    def base(self, folder: Path) -> str | None:
        """What a folder says that its base is called: a name on the hub or a path; None where it does not."""
        return None

    def task(self, folder: Path) -> str | None:
        """What a folder says that its base is for (a key of `luthier.models.TASKS`); None where it does not."""
        return None

    def evidence(self, folder: Path) -> dict[str, Any]:
        """Returns what the adapter's spec keeps of where it came from."""
        return {"library": self.name()}

    def check_base(self, model: nn.Module, processor: Any) -> None:
        """Raises `LuthierError` for a base that the format has no place for; asked before anything is written."""

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        """Writes the files and returns `{place: relative error}` of what is not exact; the model stays as it was.

        Raises `LuthierError` for an adapter that the format cannot express, with the reason and what would do.
        """
        raise NotImplementedError(f"{type(self).__name__} must define write")

    def told(self, lost: Mapping[str, float]) -> str:
        """Returns a sentence on what `write` returned, where that is something."""
        place = max(lost, key=lost.__getitem__)
        many = f"{len(lost)} places were" if len(lost) > 1 else "One place was"
        return f"{many} {self.loss}; the largest relative error is {lost[place]:.2g} ({place})."

    def remarks(self, folder: Path, model: nn.Module) -> list[str]:
        """Returns sentences on a folder that was written: who takes it and who does not."""
        return []

    def check_use(self, *, reading: bool) -> None:
        """Raises where the format is used in a way that it does not define, or with settings of the other way."""
        way, other = ("read", "written") if reading else ("written", "read")
        if not (self.reads() if reading else self.writes()):
            raise LuthierError(f"{self.name()} can be {other}, but not {way}; `luthier list formats` says which can.")
        for key, (_, declared) in self.settings().items():
            if (key in self.for_reading) != reading and getattr(self, key) != declared.default:
                raise LuthierError(f"{self.name()}.{key} says how a folder is {other}; leave it out here.")


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
