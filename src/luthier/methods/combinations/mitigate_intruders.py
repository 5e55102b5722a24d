"""Intruder dimensions turned down: what fitting added that the base has nothing like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.combination import Combination, examined, weighted
from luthier.core.numerics.delta import Delta
from luthier.core.numerics.spectrum import new_directions, spectrum


@dataclass(frozen=True)
class MitigateIntruders(Combination):
    """θ' = W' + (λ - 1) Σ_j σ_j u_j v_jᵀ over the intruders j of W' = W0 + Σ w_i δ_i

    An intruder is one of the k leading singular vectors u_j of W' that no singular vector of the base resembles
    (max_i |<u_j, u_i>| < eps): see `luthier examine --by intruders`. λ = 1 keeps it, λ = 0 takes it out; the authors
    find that a λ a little below 1 forgets less and costs little of the task. A low-rank change stays so, by one rank
    more for each intruder.
    """

    paper = "Shuttleworth et al. 2024, arXiv 2410.21228 (code: reeceshuttle/intruder-dimensions)"
    neutral: ClassVar = {"scale": 1.0}

    scale: float = 0.5
    """λ, what is left of an intruder's singular value (the default is ours: half)."""
    k: int = 10
    """Leading singular vectors of each matrix that are looked at."""
    eps: float = 0.5
    """Largest cosine with a vector of the base at which a vector counts as new."""

    def check(self):
        self.within("k", 1, float("inf"))
        self.within("eps", 0, 1)

    def merge(self, deltas, weights, at):
        total = weighted(deltas, weights)
        if self.scale == 1 or total.is_zero or not examined(at):
            return total
        before, change = at.base().double(), total.dense()
        after = spectrum(before + change, self.k)
        new = new_directions(spectrum(before), after, self.eps)
        if not len(new) or not bool(change.any()):
            return total
        left = (self.scale - 1) * after.s[new] * after.U[:, new]
        return total + Delta.low_rank(left.to(change), after.V[:, new].mT.to(change))
