"""Statistics of a combination: norms and agreement by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.contracts.combination import Combination
from luthier.core.numerics.delta import Delta
from luthier.core.version import __version__

JSON, PLOT = "combined.json", "combined.png"
OUTSIDE = -1
"""Stands for what lies outside the blocks."""


@dataclass
class Row:
    """Sums over the tensors of one block."""

    squares: list[float]
    """‖δ_i‖² of each input."""
    result: float = 0.0
    """The squared norm ‖δ‖² of the result."""
    agree: int = 0
    """Entries that several inputs move, all in one direction."""
    shared: int = 0
    """Entries that several inputs move."""
    gap: float = 0.0
    """‖W_base - W_source‖², where there is a source."""
    lost: float = 0.0
    """What truncation to a rank left out, squared."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "inputs": [square**0.5 for square in self.squares],
            "result": self.result**0.5,
            "agreement": self.agree / self.shared if self.shared else None,
        }


@dataclass
class Tally:
    """Rows by block, filled tensor by tensor."""

    count: int
    rows: dict[int, Row] = field(default_factory=dict)
    dots: Tensor = field(init=False)
    """<δ_i, δ_j>, where several inputs touch a tensor."""

    def __post_init__(self) -> None:
        self.dots = torch.zeros(self.count, self.count, dtype=torch.float64)

    def row(self, layer: int | None) -> Row:
        """Returns the row of a block."""
        return self.rows.setdefault(OUTSIDE if layer is None else layer, Row([0.0] * self.count))

    def add(self, layer: int | None, deltas: Sequence[Delta], result: Delta) -> None:
        """Counts one tensor."""
        row = self.row(layer)
        norms = [0.0 if d.is_zero else d.norm() for d in deltas]
        for index, norm in enumerate(norms):
            row.squares[index] += norm**2
            self.dots[index, index] += norm**2
        row.result += 0.0 if result.is_zero else result.norm() ** 2
        moving = [i for i, norm in enumerate(norms) if norm > 0 and deltas[i].shape == result.shape]
        if len(moving) > 1:
            self._compare(row, moving, [deltas[i].dense() for i in moving])

    def _compare(self, row: Row, which: list[int], full: list[Tensor]) -> None:
        signs = torch.stack([t.sign().to(torch.int8) for t in full])
        moved = signs.abs().sum(0)
        row.shared += int((moved > 1).sum())
        row.agree += int(((moved > 1) & (signs.sum(0).abs() == moved)).sum())
        for a, i in enumerate(which):
            for b, j in list(enumerate(which))[:a]:
                self.dots[i, j] += float((full[a] * full[b]).sum())
                self.dots[j, i] = self.dots[i, j]

    def cosines(self) -> list[list[float]]:
        """Between every two inputs, over the whole model."""
        norms = self.dots.diagonal().sqrt().clamp(min=1e-300)
        return (self.dots / norms / norms[:, None]).tolist()

    def total(self, key: str) -> float:
        """Square root of a sum over all rows."""
        return sum(getattr(row, key) for row in self.rows.values()) ** 0.5


@dataclass(frozen=True)
class Combined:
    """The result of a combination."""

    folder: Path
    method: Combination
    inputs: tuple[str, ...]
    weights: tuple[float, ...]
    kept: Mapping[str, int]
    """Tensors by the way in which they are kept: lora, sparse, full, or merged."""
    totals: Mapping[str, float]
    """What the method measured over all tensors first."""
    tally: Tally

    @property
    def truncation(self) -> float:
        """Relative error in Frobenius norm that truncation to a rank made."""
        before = (self.tally.total("result") ** 2 + self.tally.total("lost") ** 2) ** 0.5
        return self.tally.total("lost") / before if before else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "method": self.method.name(),
            "settings": self.method.to_dict(),
            "inputs": list(self.inputs),
            "weights": list(self.weights),
            "kept": dict(self.kept),
            "measured": dict(self.totals),
            "norm": self.tally.total("result"),
            "gap": self.tally.total("gap"),
            "truncation": self.truncation,
            "cosines": self.tally.cosines(),
            "blocks": {str(layer): row.to_dict() for layer, row in sorted(self.tally.rows.items())},
            "luthier": __version__,
        }
