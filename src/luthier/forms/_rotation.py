"""Orthonormal rows, by a Cholesky factor: exact at every step under any optimiser."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal(m: Tensor) -> Tensor:
    """R = L⁻¹ M with L Lᵀ = M Mᵀ: orthonormal rows that span those of M [r, d].

    r² d operations, and differentiable: no optimiser needs to know of the constraint, and a stored M gives the
    same R. Half-precision M is orthonormalised in float32.
    """
    wide = m.to(torch.promote_types(m.dtype, torch.float32))
    factor = torch.linalg.cholesky(wide @ wide.mT)
    return torch.linalg.solve_triangular(factor, wide, upper=False).to(m.dtype)
