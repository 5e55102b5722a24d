"""The contract of an import: a source reads another library's folder as forms with their tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.contracts.component import Component
from luthier.core.contracts.form import Form


@dataclass(frozen=True, eq=False)
class Found:
    """One imported form with its sites, which are of one kind."""

    form: Form
    kind: str
    """The kind of the sites: affine (embeddings included), input, stream or param."""
    tensors: dict[str, dict[str, Tensor]]
    """The tensors, {path of the site: {parameter: tensor}}."""
    ranks: dict[str, int] = field(default_factory=dict)
    """The ranks, {path: rank}, where they differ."""


@dataclass(frozen=True)
class Source(Component):
    """A library to import from: `fits(folder)` recognises its folders, `read(folder, model)` reads them."""

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Returns whether a folder is an adapter of this library."""
        raise NotImplementedError(f"{cls.__name__} must define fits")

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        """Reads the forms with their tensors; raises `LuthierError` for damage and for what has no equal here."""
        raise NotImplementedError(f"{type(self).__name__} must define read")

    def evidence(self, folder: Path) -> dict[str, Any]:
        """Returns what the adapter's spec records about its origin."""
        return {"library": self.name()}
