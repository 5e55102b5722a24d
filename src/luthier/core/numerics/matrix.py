"""Decompositions of weights and gradients, as forms and initialisers take them."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(matrix: Tensor) -> Tensor:
    """Returns the matrix on the default device, in float32 at least."""
    return matrix.detach().to(torch.get_default_device(), torch.promote_types(matrix.dtype, torch.float32))


def leading(matrix: Tensor, rank: int, niter: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the leading (U [m, r], S [r], Vᵀ [r, n]) of an SVD; by `niter` subspace iterations where given."""
    if niter is None:
        u, s, vt = torch.linalg.svd(wide(matrix), full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(wide(matrix), q=min(2 * rank, *matrix.shape), niter=niter)
        vt = v.mT
    return u[:, :rank].contiguous(), s[:rank].contiguous(), vt[:rank].contiguous()


def gain(m: Tensor, norms: Tensor) -> Tensor:
    """m / ‖·‖ of each row [d_out]; 1 for a row of zeros, which has no direction and stays as it is at any length."""
    none = norms == 0
    return (m / norms.masked_fill(none, 1)).masked_fill(none, 1)
