"""Datamodel matching: the outputs that the model would have without the rows are predicted, and matched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.unlearning import Unlearning


@dataclass(frozen=True)
class DMM(Unlearning):
    """L = mean over rows x of |f_θ(x) - t(x)|², t(x) = f(x) - m Σ_{i in F} τ(i → x), x from F and from the retained

    τ(i → x) is what row i added to the logits at x: - J(x) H⁻¹ g_i, with g_i the gradient of its loss, J the Jacobian
    of the logits and H the damped Gauss-Newton matrix of the retained rows, all of the adapter's tensors and projected
    to `dimension` numbers by a sparse random projection. The paper leaves the attribution open; this is the Newton
    step, which is exact for ridge regression.
    """

    paper = "Georgiev et al. 2024 (Attribute-to-Delete), arXiv 2410.23232; KLOM: RoyRin/data-unlearning-bench"
    matches = True

    multiplier: float = 1.0
    """The multiplier m of the attributions."""
    dimension: int = 512
    """Numbers that gradients are projected to; adapters of fewer are not projected."""
    damping: float = 10.0
    """The damping of H, as a share of its mean eigenvalue. H of a classifier that is sure of its rows is close to 0 in
    most directions, where too little damping predicts logits that no training reaches."""

    def check(self):
        self.within("multiplier", 0.0)
        self.within("dimension", 1)
        self.above("damping", 0.0)

    def loss(self, forget: Any, retain: Any):
        squares = [(each.logits - each.targets).square().mean(-1) for each in (forget, retain)]
        return sum(s.sum() for s in squares) / sum(len(s) for s in squares)
