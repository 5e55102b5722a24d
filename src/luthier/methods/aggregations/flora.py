"""FLoRA: clients' factors are stacked, so that their product is the mean of the clients' products."""

from __future__ import annotations

from dataclasses import dataclass

from torch import cat

from luthier.core.contracts.aggregation import Aggregation, factors
from luthier.core.numerics.delta import Delta


@dataclass(frozen=True)
class FLoRA(Aggregation):
    """ΔW = B A = Σ p_k s_k B_k A_k, B = [s_1 B_1 … s_K B_K], A = [p_1 A_1; …; p_K A_K]

    Exact whatever the clients' ranks, and of the sum of their ranks. ΔW is folded into the base, and every client
    starts the next round with a new adapter on it; so clients are sent K times what one of them sends. Each client's
    own s_k = alpha / r goes with its factors. (The authors' code scales the stack by one alpha / r, and gives it the
    rank K r: it is right where all clients have the alpha / r and the mean rank of its settings.)
    """

    paper = "Wang et al. 2024 (NeurIPS 2024), arXiv 2409.05976 (code: ATP-1010/FederatedLLM)"
    merges = True

    def aggregate(self, deltas, shares):
        pairs = [factors(delta) for delta in deltas]
        b = cat([b for b, _ in pairs], 1)
        a = cat([share * a for (_, a), share in zip(pairs, shares, strict=True)], 0)
        return Delta.low_rank(b, a)
