"""The contract of an aggregation: how a federated server combines the changes of its clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.core.contracts.component import Component
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta


@dataclass(frozen=True)
class Aggregation(Component):
    """How a server combines its clients' factors: `aggregate(deltas, shares) -> Delta`, pure, one layer at a time.

    `deltas` holds each client's change B A of a layer, B [d_out, r] with the client's own scale s = alpha / r
    multiplied in and A [r, d_in], `shares` what each client counts for, which sum to 1. The result is of low rank too.

    After a round the clients either start again on a base into which the result was merged (`merges`), or continue from
    factors of the result.
    """

    merges: ClassVar[bool] = False
    """Whether the result is merged into the base, on which every client starts a new adapter."""
    mixed: ClassVar[bool] = True
    """Whether clients may have adapters of different ranks."""

    def check_ranks(self, ranks: Sequence[int]) -> None:
        """Raises for client ranks that it cannot combine."""
        if not self.mixed and len(set(ranks)) > 1:
            raise LuthierError(
                f"{self.name()} averages B and A entry by entry, which only factors of one size allow, and the "
                f"clients' ranks are {', '.join(map(str, sorted(set(ranks))))}. Give all of them one rank, or take an "
                "aggregation of mixed ranks (luthier list aggregations)."
            )

    def aggregate(self, deltas: Sequence[Delta], shares: Sequence[float]) -> Delta:
        """Returns the change B A that the server holds after a round."""
        raise NotImplementedError(f"{type(self).__name__} must define aggregate")

    def start(self, held: Delta, rank: int) -> Delta:
        """Returns the factors that a client of this rank continues from, where the result is not merged.

        Where it has fewer (the clients of a round may be those of small ranks), the client starts the rest afresh.
        """
        b, a = factors(held)
        return Delta.low_rank(b[:, :rank], a[:rank])


def factors(delta: Delta) -> tuple[Tensor, Tensor]:
    """Returns the factors (B, A) of a low-rank change."""
    if delta.rank is None or delta.B is None or delta.A is None:
        raise LuthierError("aggregations take changes of low rank, B A.")
    return delta.B, delta.A


def shares_of(rows: Sequence[int]) -> tuple[float, ...]:
    """Returns the weights of clients with these numbers of rows, p_k = n_k / Σ n; they sum to 1."""
    if not rows or min(rows) < 1:
        raise LuthierError(f"every client needs a row to learn from, and they have {', '.join(map(str, rows))}.")
    total = math.fsum(rows)
    return tuple(count / total for count in rows)
