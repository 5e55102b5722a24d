"""What formats of low-rank changes have in common: a rank to truncate to, and how much that may lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luthier.core.contracts.format import Format, check_truncation

if TYPE_CHECKING:
    from luthier.interop.formats._layers import Factoring


@dataclass(frozen=True)
class LowRankFormat(Format):
    """A format that holds factors B A; changes of low rank leave exactly, others by a truncated SVD if that is asked
    for."""

    loss: ClassVar[str] = "truncated"

    rank: int | None = None
    """Largest rank of a layer; changes of a higher one, or of none, are truncated to it. Default: those of low rank
    leave as they are, others are refused."""
    tolerance: float = 0.0
    """Largest relative error of a layer (Frobenius) that truncation to `rank` may make."""

    def check(self) -> None:
        check_truncation(self.rank, self.tolerance)

    def factoring(self) -> Factoring:
        """Returns what makes factors of changes, and keeps what truncation lost."""
        from luthier.interop.formats._layers import Factoring

        return Factoring(self.rank, self.tolerance)
