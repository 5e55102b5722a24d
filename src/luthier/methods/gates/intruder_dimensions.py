"""Intruder dimensions: leading directions of the fine-tuned weights that the base does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from luthier.core.contracts.gate import Gate, Probes
from luthier.core.errors import LuthierError
from luthier.methods.examinations.intruders import Intruders


@dataclass(frozen=True)
class IntruderDimensions(Gate):
    """worsening = mean over matrices of their intruders - those of a random update of the same norm

    Intruders are counted as by `luthier examine --by intruders` (j ≤ k with max_i |⟨u_j, u_i⟩| < eps). The probes are
    all matrices of the blocks that changed, so the mean has no uncertainty. No rows are read.
    """

    paper = "Shuttleworth et al. 2024, arXiv 2410.21228 (code: reeceshuttle/intruder-dimensions)"
    unit: ClassVar[str] = "intruders a matrix"
    exact: ClassVar[bool] = True

    tolerance: float = 1.0
    """Most intruders a matrix, beyond those of a random update, that may be released."""
    k: int = 10
    """Leading singular vectors of each matrix that are looked at."""
    eps: float = 0.5
    """Largest cosine with a vector of the base at which a vector counts as new."""

    def check(self):
        super().check()
        self.within("k", 1)
        self.within("eps", 0, 1)
        if self.data is not None:
            raise LuthierError("intruder_dimensions looks at weights alone; leave data out.")

    def measure(self, subject):
        with torch.no_grad():
            report = Intruders(k=self.k, eps=self.eps).of(subject.changes(), lambda text, items: items)
        found, null = (
            torch.tensor([numbers["intruders"] for numbers in each.values()]).double()
            for each in (report.places, report.null)
        )
        return Probes(null, found, null)
