"""L2-SP: the adapter stays near where it started."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.penalty import Penalty, copies


@dataclass(frozen=True)
class L2SP(Penalty):
    """L + α Σ_i (θ_i - θ⁰_i)², θ⁰ where training starts

    In a sequence θ⁰ is the adapter after the last task. Of a form that starts as a no-op, the change itself is charged
    only as far as it follows from the tensors' own distance.
    """

    paper = "Li et al. 2018, arXiv 1802.01483 (their α / 2 is α here)"
    remembers = False

    weight: float = 0.01
    """The weight α."""

    def begin(self, params, kept):
        return {"anchor": copies(params)}
