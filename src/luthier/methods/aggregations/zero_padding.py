"""Zero-padding: factors of different ranks are averaged as if the missing directions were zeros."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import pad

from luthier.core.contracts.aggregation import Aggregation, factors
from luthier.core.numerics.delta import Delta
from luthier.methods.aggregations.fedit import FedIT


@dataclass(frozen=True)
class ZeroPadding(Aggregation):
    """B = Σ p_k [B_k 0], A = Σ p_k [A_k; 0], padded to the largest rank

    What HetLoRA does with factors of mixed ranks, without its pruning of ranks and its weights by norm: a client takes
    the first r_k directions of B and A and goes on from them. To the cross terms of averaged factors it adds that a
    direction which only some clients have is averaged with zeros. Of equal ranks it is the plain average of factors.
    """

    paper = "HetLoRA: Cho et al. 2024, arXiv 2401.06432; as a baseline: Wang et al. 2024, arXiv 2409.05976"

    def aggregate(self, deltas, shares):
        largest = max(delta.rank or 0 for delta in deltas)
        return FedIT().aggregate([_padded(delta, largest) for delta in deltas], shares)


def _padded(delta: Delta, rank: int) -> Delta:
    b, a = factors(delta)
    more = rank - b.shape[1]
    return Delta.low_rank(pad(b, (0, more)), pad(a, (0, 0, 0, more)))
