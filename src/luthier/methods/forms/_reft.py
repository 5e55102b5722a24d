"""What the ReFT family has in common: where and how much it edits, and orthonormal rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.core.contracts.form import Form, orthogonal


@dataclass(frozen=True)
class ReFT(Form):
    """An edit of the hidden state at prompt positions, right after a block."""

    kinds = ("stream", "input", "affine", "embedding")
    lr = 9e-4
    where = "stream"

    rank: int = 8
    """Rank of the edit."""
    dropout: float = 0.0
    """Dropout on the whole edited state Φ(h), not on the edit alone, as in pyreft; other positions stay untouched."""
    positions: str = field(default="f7+l7", kw_only=True)


@dataclass(frozen=True)
class RotatedReFT(ReFT):
    """An edit inside the subspace that the orthonormal rows of R span."""

    def start(self, site) -> Tensor:
        """Returns a random R [rank, d] with orthonormal rows."""
        return orthogonal(self.rank, site.d_out)

    def rotation(self, p):
        """R [rank, d], with orthonormal rows, from the stored tensor."""
        return orthonormal(p["R"])


def stored(rotation: Tensor) -> Tensor:
    """Returns M = R / 2, which `orthonormal` maps back to R, and whose steps rotate R as far as pyreft's do.

    R does not change with the length of M, but a step ΔM across a row of length l turns it by |ΔM| / l. pyreft's rows
    come from Householder reflectors that start with tau = 2, so that a step of its stored tensor turns them by
    2 |ΔM|: rates of the paper mean that, and l = 1/2 has it. Over 40 recorded steps of Adam at 9e-4 and width 192 the
    lengths of the steps agree to 0.5% at first and to 7% at last, with the losses within 0.3%. The paths are not the
    same: Adam scales each coordinate by itself, and pyreft's are turned against these; and at a distance a from the
    start a further step in the same direction turns pyreft's by 2 / (1 + a²) of its length, ours by 2 / (1 + 4a²).
    Weight decay shortens M, so that R turns faster; pyreft's becomes zero under it. Adapters saved with l = 1 have the
    same R, and go on at half the speed when resumed.
    """
    return rotation / 2


def orthonormal(m: Tensor) -> Tensor:
    """R = L⁻¹ M with L Lᵀ = M Mᵀ: orthonormal rows that span those of M [r, d].

    r² d operations, and differentiable: no optimiser needs to know of the constraint, and a stored M gives the
    same R. Half-precision M is orthonormalised in float32.
    """
    wide = m.to(torch.promote_types(m.dtype, torch.float32))
    factor = torch.linalg.cholesky(wide @ wide.mT)
    return torch.linalg.solve_triangular(factor, wide, upper=False).to(m.dtype)
