"""The contract of an import: another library's folder is read as forms with their tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.contracts.component import Component
from luthier.core.contracts.form import Form


@dataclass(frozen=True, eq=False)
class Found:
    """One form on its sites, which are of one kind or of those that a bare name can mean."""

    form: Form
    kind: str
    """affine (tables included), input, stream or param."""
    tensors: dict[str, dict[str, Tensor]]
    """{path of the site: {parameter: tensor}}."""
    ranks: dict[str, int] = field(default_factory=dict)
    """{path: rank}, where ranks differ."""


@dataclass(frozen=True)
class Source(Component):
    """A library: `fits(folder)` tells its folders by what they hold, `read(folder, model)` gives the forms."""

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Whether a folder is one of this library's adapters."""
        raise NotImplementedError(f"{cls.__name__} must define fits")

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        """The forms with their tensors, for a base. Raises `LuthierError` for damage and for what has no equal here."""
        raise NotImplementedError(f"{type(self).__name__} must define read")

    def evidence(self, folder: Path) -> dict[str, Any]:
        """What the adapter's spec keeps of where it came from."""
        return {"library": self.name()}
