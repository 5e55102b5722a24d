"""The result of federated fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.notebook import shown, table


@dataclass(frozen=True, repr=False)
class Federated:
    """The result of a federated run."""

    folder: Path
    adapter: Path
    """Folder of the adapter: the sum of all rounds."""
    rounds: list[dict[str, Any]]
    """A line of metrics.jsonl for each round; round 0 is what there was before."""
    ranks: dict[str, int]
    """The adapter's rank at each layer."""

    def __repr__(self) -> str:
        last = {key: value for key, value in self.rounds[-1].items() if isinstance(value, int | float)}
        told = ", ".join(f"{name} {shown(value)}" for name, value in last.items())
        return f"Federated({str(self.folder)!r}: {told})"

    def _repr_html_(self) -> str:
        plain = (int, float, str)
        return table({k: v for k, v in line.items() if isinstance(v, plain)} for line in self.rounds)
