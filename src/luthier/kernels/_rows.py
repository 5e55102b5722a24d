"""Low-rank terms outside training: in place, in float32 where few tokens make half-precision products dear."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

FEW = 32
"""Up to so many tokens, half-precision products this small take ten times as long as float32 ones on a CPU."""


def added(y: Tensor, x: Tensor, a: Tensor, b: Tensor, s: float) -> None:
    """y += s (x Aᵀ) Bᵀ; y [t, d_out], x [t, d_in], A [r, d_in], B [d_out, r] in any float format."""
    if x.dtype == a.dtype:
        y.addmm_(functional.linear(x, a), b.mT, alpha=s)
    elif len(x) <= FEW and x.device.type == "cpu":
        y.add_(functional.linear(functional.linear(x.to(a.dtype), a), b), alpha=s)
    else:
        y.addmm_(functional.linear(x, a.to(x.dtype)), b.mT.to(x.dtype), alpha=s)


def added_rows(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
    """y += (x Aᵀ) B row by row; y [n, t, d_out], x [n, t, d_in], A [n, r, d_in], B [n, r, d_out]."""
    if x.dtype == a.dtype:
        y.baddbmm_(torch.bmm(x, a.mT), b)
    elif x.shape[1] <= FEW and x.device.type == "cpu":
        y.add_(torch.bmm(torch.bmm(x.to(a.dtype), a.mT), b))
    else:
        y.baddbmm_(torch.bmm(x, a.mT.to(x.dtype)), b.to(x.dtype))


def of_rows(factors: Sequence[Tensor], rows: Sequence[int | None]) -> Tensor:
    """The factors [r_i, d] of every row, filled up with zeros to the largest rank: [rows, r, d]; zeros for None."""
    rank, width = max(len(f) for f in factors), factors[0].shape[1]
    padded = [functional.pad(f, (0, 0, 0, rank - len(f))) for f in factors]
    stack = torch.stack([*padded, factors[0].new_zeros(rank, width)])
    return stack[torch.tensor([len(factors) if row is None else row for row in rows], device=stack.device)]
