"""Leading singular directions of a weight before and after a change, and which of them are new."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.numerics.wide import exact


@dataclass(frozen=True)
class Spectrum:
    """W = Σ σ_j u_j v_jᵀ, σ descending; directions without a singular value are left out."""

    U: Tensor
    """The left singular vectors, [d_out, r]."""
    s: Tensor
    """The singular values, [r]."""
    V: Tensor
    """The right singular vectors, [d_in, r]."""


def spectrum(w: Tensor, k: int | None = None) -> Spectrum:
    """Returns the k leading directions of w [d_out, d_in] (all unless told), in float64.

    By the eigenvectors of the smaller of W Wᵀ and Wᵀ W, at a fraction of the cost of an SVD; singular values below
    1e-7 of the largest are lost in the square.
    """
    w = exact(w.detach())
    wide = w.shape[0] <= w.shape[1]
    squares, near = torch.linalg.eigh(w @ w.mT if wide else w.mT @ w)
    s, near = squares.flip(0).clamp(min=0).sqrt(), near.flip(1)
    count = min(int((s > 1e-7 * s[0]).sum()), len(s) if k is None else k)
    s, near = s[:count], near[:, :count]
    far = (w.mT if wide else w) @ near / s
    return Spectrum(near, s, far) if wide else Spectrum(far, s, near)


def new_directions(before: Spectrum, after: Spectrum, eps: float) -> Tensor:
    """Indices j of the columns of `after.U` with max_i |<u_j, u_i>| < eps over the columns of `before.U`."""
    if not len(before.s) or not len(after.s):
        return torch.arange(len(after.s))
    return ((after.U.mT @ before.U).abs().amax(1) < eps).nonzero()[:, 0]
