"""FedIT: the factors are averaged, each by itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import stack

from luthier.core.contracts.aggregation import Aggregation, factors
from luthier.core.numerics.delta import Delta


@dataclass(frozen=True)
class FedIT(Aggregation):
    """B = Σ p_k B_k, A = Σ p_k A_k

    FedAvg on the adapter's tensors. B A = Σ_k Σ_j p_k p_j B_k A_j is not the mean of the clients' changes,
    Σ p_k B_k A_k: it has the cross terms of any two clients beside it. All clients have one rank, and go on from B
    and A. (The authors' of FLoRA keep the first client alone in their version of it, by a slip in a name.)
    """

    paper = "Zhang et al. 2023, arXiv 2305.05644; FedAvg: McMahan et al. 2016, arXiv 1602.05629"
    mixed = False

    def aggregate(self, deltas, shares):
        self.check_ranks([delta.rank or 0 for delta in deltas])
        pairs = [factors(delta) for delta in deltas]
        b = stack([share * b for (b, _), share in zip(pairs, shares, strict=True)]).sum(0)
        a = stack([share * a for (_, a), share in zip(pairs, shares, strict=True)]).sum(0)
        return Delta.low_rank(b, a)
