"""The specification of a sweep of sequence models that are meta-trained to learn in context."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from luthier.core.contracts.component import check_fields
from luthier.core.errors import LuthierError

AT_LEAST = {
    "layers": 1, "classes": 2, "dimension": 1, "length": 4, "steps": 1, "batch": 1, "episodes": 2, "save_every": 1
}  # fmt: skip
HEAD = 16
"""Width of an attention head; narrower transformers have one."""
NEW = 2**40
"""The number of the first task that is in no training."""


@dataclass(frozen=True)
class InContext:
    """Labelled vectors, the tasks that are made of them, and the models that are trained on these.

    The settings are sized for two cores, and much smaller than the paper's.
    """

    data: str
    """`digits` (scikit-learn's, 8 x 8 pixels), or an .npz file with `x` [rows, …] and `y` [rows]."""
    tasks: tuple[int, ...] = field(default=(1, 4, 16, 64, 256, 4096, 65536), metadata={"several": True})
    """Numbers of training tasks; a model is trained for each, at each width."""
    widths: tuple[int, ...] = field(default=(4, 8, 32), metadata={"several": True})
    """Widths of the transformer."""
    out: str = "gpicl"
    """The folder to write."""
    layers: int = 2
    """Blocks of the transformer."""
    classes: int = 2
    """Classes, the first of the data."""
    dimension: int = 8
    """Numbers that a task's projection A gives for a row."""
    length: int = 24
    """Rows of a sequence."""
    steps: int = 1000
    """Optimiser steps of each model."""
    batch: int = 32
    """Sequences of a step, each of a task drawn by the seed."""
    lr: float = 3e-3
    """Learning rate of Adam."""
    shuffled: bool = False
    """Deal the labels of each sequence out anew at random, so that nothing can be learned: the null."""
    episodes: int = 64
    """Sequences of held-out rows that are measured, of training tasks and as many of new ones."""
    save_every: int = 250
    """Steps between checkpoints."""
    seed: int = 0
    """The seed of the tasks, the first weights, the split of the rows and the sequences."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in AT_LEAST.items():
            if getattr(self, name) < least:
                raise LuthierError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        for name in ("tasks", "widths"):
            values = getattr(self, name)
            if not values or min(values) < 1 or len(set(values)) < len(values):
                raise LuthierError(f"{name} are {list(values)}; expected numbers from 1, each once.")
        if max(self.tasks) > NEW:
            raise LuthierError(
                f"tasks are {list(self.tasks)}; expected at most 2^40, from where new tasks are counted."
            )
        if odd := [width for width in self.widths if width % self.heads(width)]:
            raise LuthierError(f"a width of {odd[0]} cannot be dealt to {self.heads(odd[0])} heads; take a multiple.")
        if not self.lr > 0:
            raise LuthierError(f"lr is {self.lr}; expected a number above 0.")

    @staticmethod
    def heads(width: int) -> int:
        """Returns the heads of a transformer of this width."""
        return max(1, width // HEAD)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON holds them."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**plain, "tasks": list(self.tasks), "widths": list(self.widths)}
