"""The specification of an edit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.component import check_fields
from luthier.core.contracts.editing import Editing
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Edit:
    """A model, facts, and how they are written."""

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    facts: str
    """Rows with prompt and target, and where given rephrased and neighbour prompts."""
    editing: Editing
    form: Form
    """What is attached at the place."""
    out: str = "edit"
    """The folder to write."""
    where: str | None = None
    """The place. Default: searched."""
    search_layers: int = 4
    """How many blocks are tried in a search, evenly spread."""
    search_facts: int = 16
    """How many facts a place is tried with."""
    limit: int | None = None
    """Write the first so many facts."""
    held: str | None = None
    """Texts whose loss is measured before and after."""
    micro_batch: int = 16
    """Rows of a forward pass; a step sums over them."""
    seed: int = 0
    """The seed of the order of facts."""
    dtype: str = "float32"
    """Dtype of the base."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("search_layers", "search_facts", "limit", "micro_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise LuthierError(f"{name} is {value}; expected at least 1.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON holds them."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("editing", "form"):
            plain[name] = {"name": plain[name].name(), "settings": plain[name].to_dict()}
        return plain
