"""LoRA+: the factor that starts at zero learns faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class LoRAPlus(Update):
    """η_B = ratio · η_A

    A, the factor that reads the input (ψ of WeGeFT, both D of Hydra), learns at the run's rate, and every other tensor
    of the form at `ratio` times it: for wide layers one common rate leaves A's share of the change vanishing. The
    authors' code puts vectors (a magnitude, a bias) with B as well, and has a rate of its own for embeddings, which is
    left out.
    """

    paper = "Hayou, Ghosh, Yu 2024 (ICML), arXiv 2402.12354"
    family = "reparameterisation"
    neutral: ClassVar = {"ratio": 1.0}

    ratio: float = 16.0
    """Learning rate of B over that of A."""

    def check(self):
        self.within("ratio", 0.0, 1e6)

    def check_form(self, form, sites):
        if not form.down_projections:
            raise LuthierError(
                f"{self.name()} sets two factors apart, and {form.name()} has no factor that reads; use lora."
            )

    def rate(self, plan, group, key):
        return self.ratio if group.form.down_projections and key not in group.form.down_projections else 1.0
