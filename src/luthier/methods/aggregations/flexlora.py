"""FlexLoRA: the mean of the clients' products, cut back to a rank by SVD."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.aggregation import Aggregation
from luthier.core.contracts.combination import weighted


@dataclass(frozen=True)
class FlexLoRA(Aggregation):
    """U S Vᵀ = Σ p_k s_k B_k A_k; B = U_r S_r, A = V_rᵀ

    The server keeps the largest rank of its clients; a client goes on from the r_k leading directions. The mean is
    exact, and its tail is lost. The SVD is taken of the QR factors of the stack, so that nothing of the layer's size
    is decomposed.
    """

    paper = "Bai et al. 2024 (NeurIPS 2024), arXiv 2402.11505"

    def aggregate(self, deltas, shares):
        return weighted(deltas, shares).factor(max(delta.rank or 0 for delta in deltas))[0]
