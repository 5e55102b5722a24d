"""The specification of a meta-training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.component import check_fields
from luthier.core.contracts.form import Form
from luthier.core.contracts.meta import Meta
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class MetaRun:
    """A model, domains, and what is to adapt."""

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    domains: tuple[str, ...]
    """The rows of each domain that is learned."""
    tests: tuple[str, ...]
    """The rows of domains that are not learned: adapting is measured there."""
    meta: Meta
    form: Form
    out: str = "meta"
    """The folder to write."""
    where: str | None = None
    """Sites that the form is attached to. Default: the form's own."""
    shots: int = 1
    """Demonstrations of an episode."""
    asked: int = 4
    """Other rows of an episode."""
    together: int = 4
    """Domains of an outer step, drawn by the seed."""
    steps: int = 100
    """Outer steps."""
    lr: float = 1e-3
    """Learning rate of the outer steps, by Adam."""
    episodes: int = 8
    """Episodes that are measured in each domain of `tests`."""
    max_length: int = 512
    """The most tokens of a row; masks have none."""
    side: int = 128
    """Pixels of the side that pictures and masks are brought to, where masks are learned."""
    save_every: int = 20
    """Outer steps between checkpoints."""
    baseline: bool = True
    """Also train on all domains jointly, with as many steps on as many rows, and measure that beside it."""
    seed: int = 0
    """The seed of new tensors, and of the episodes."""
    dtype: str = "float32"
    """Dtype of the base."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("shots", "asked", "together", "steps", "episodes", "save_every", "max_length", "side"):
            if getattr(self, name) < 1:
                raise LuthierError(f"{name} is {getattr(self, name)}; expected at least 1.")
        idle = "max_length" if self.meta.rows == "masks" else "side"
        if (found := getattr(self, idle)) != getattr(MetaRun, idle):
            raise LuthierError(f"{idle} is {found} and would be ignored: {self.meta.name()} learns {self.meta.rows}.")
        if len(self.domains) < 2:
            raise LuthierError(f"{len(self.domains)} domain leaves nothing to learn across; name at least two.")
        if not self.tests:
            raise LuthierError("nothing tells whether it adapts: name at least one domain that is not learned (tests).")
        if same := set(self.tests) & set(self.domains):
            raise LuthierError(f"{min(same)} is learned and tested; a domain is one or the other.")
        if not self.lr > 0:
            raise LuthierError(f"lr is {self.lr}; expected a number above 0.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON holds them."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("meta", "form"):
            plain[name] = {"name": plain[name].name(), "settings": plain[name].to_dict()}
        return {**plain, "domains": list(self.domains), "tests": list(self.tests)}
