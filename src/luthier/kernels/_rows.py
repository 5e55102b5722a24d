"""Low-rank terms outside training: in place, in float32 where few tokens make half-precision products dear."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

FEW = 32
"""Up to so many tokens, half-precision products this small take ten times as long as float32 ones on a CPU."""


def added(y: Tensor, x: Tensor, a: Tensor, b: Tensor, s: float) -> None:
    """y += s (x Aᵀ) Bᵀ; y [t, d_out], x [t, d_in], A [r, d_in], B [d_out, r] in any float format."""
    if len(x) == 1 and x.device.type == "cpu":  # vectors need no transposed copy of B
        low = torch.mv(b, torch.mv(a, x[0].to(a.dtype)))
        y[0].add_(low, alpha=s)
    elif x.dtype == a.dtype:
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


class Rows:
    """The factors of a mixed batch: row i of what comes has those numbered rows[i], or none."""

    def __init__(self, a: Sequence[Tensor], b: Sequence[Tensor], rows: Sequence[int | None]) -> None:
        """a and b hold A [r_i, d_in] and s Bᵀ [r_i, d_out] of every adapter, of any ranks."""
        self.a, self.b = _stacked(a), _stacked(b)
        self.index = torch.tensor([len(a) if row is None else row for row in rows], device=self.a.device)
        self.gathered = _gathered() if self.a.is_cuda and self.a.dtype == torch.float32 else None
        if self.gathered is None:
            self.a, self.b = self.a[self.index], self.b[self.index]

    def add(self, y: Tensor, x: Tensor) -> None:
        """y += s (x Aᵀ) Bᵀ row by row; y [rows, ..., d_out] and contiguous, x [rows, ..., d_in]."""
        y, x = y.view(len(self.index), -1, y.shape[-1]), x.reshape(len(self.index), -1, x.shape[-1])
        if self.gathered is None:
            added_rows(y, x, self.a, self.b)
        elif x.shape[1] <= FEW:
            self.gathered(y, x.contiguous(), self.a, self.b, self.index)
        else:
            added_rows(y, x, self.a[self.index], self.b[self.index])


@functools.cache
def _gathered() -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] | None:
    """The Triton path, where it can run."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("luthier.kernels._gathered").added_rows


def _stacked(factors: Sequence[Tensor]) -> Tensor:
    """The factors [r_i, d], filled up with zeros to the largest rank, and zeros for no adapter: [factors + 1, r, d]."""
    rank, width = max(len(f) for f in factors), factors[0].shape[1]
    padded = [functional.pad(f, (0, 0, 0, rank - len(f))) for f in factors]
    return torch.stack([*padded, factors[0].new_zeros(rank, width)])
