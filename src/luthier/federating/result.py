"""The result of federated fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Federated:
    """The result of a federated run."""

    folder: Path
    adapter: Path
    """Folder of the adapter: the sum of all rounds."""
    rounds: list[dict[str, Any]]
    """A line of metrics.jsonl for each round; round 0 is what there was before."""
    ranks: dict[str, int]
    """The adapter's rank at each layer."""
