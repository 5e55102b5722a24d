"""What the ReFT family has in common: where and how much it edits, and orthonormal rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.core.contracts.form import Form


@dataclass(frozen=True)
class ReFT(Form):
    """An edit of the hidden state at prompt positions, right after a block."""

    kinds = ("stream", "input", "affine", "embedding")
    lr = 9e-4
    where = "stream"

    rank: int = 8
    """Rank of the edit."""
    positions: str = field(default="f7+l7", kw_only=True)


@dataclass(frozen=True)
class RotatedReFT(ReFT):
    """An edit inside the subspace that the orthonormal rows of R span."""

    def rotation(self, p):
        """R [rank, d], with orthonormal rows, from the stored tensor."""
        return orthonormal(p["R"])


def orthonormal(m: Tensor) -> Tensor:
    """R = L⁻¹ M with L Lᵀ = M Mᵀ: orthonormal rows that span those of M [r, d].

    r² d operations, and differentiable: no optimiser needs to know of the constraint, and a stored M gives the
    same R. Half-precision M is orthonormalised in float32.
    """
    wide = m.to(torch.promote_types(m.dtype, torch.float32))
    factor = torch.linalg.cholesky(wide @ wide.mT)
    return torch.linalg.solve_triangular(factor, wide, upper=False).to(m.dtype)
