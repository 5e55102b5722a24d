"""How the data are looked at before training: what a calibration pass reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.contracts.component import check_fields
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Calibration:
    """How the data are looked at before ranks and starting factors are chosen."""

    samples: int = 1024
    """Rows that are read, drawn by the seed (all of them where there are fewer)."""
    batch: int = 8
    """Rows read at a time."""
    tokens: Literal["all", "answers"] = "all"
    """Which tokens count: all but padding, or those of answers alone."""
    seed: int | None = None
    """Fixes the rows that are drawn and their order. Default: the seed of the run, which without training is 0."""
    fresh: bool = False
    """Measure again though the cache holds the result."""
    source: str | None = None
    """Other data that are looked at, such as what is to be kept. Default: the rows trained on."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise LuthierError(f"{name} is {getattr(self, name)}; expected at least 1.")

    def seeded(self, seed: int) -> Calibration:
        """Returns the same with a seed: its own, or else the run's."""
        return self if self.seed is not None else dataclasses.replace(self, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON holds them."""
        return dataclasses.asdict(self)
