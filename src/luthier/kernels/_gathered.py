"""Rows of several adapters on CUDA: each row reads its own factors in place, without a copy of them for every row.

Two Triton kernels, as in Punica (Chen et al. 2023, arXiv 2310.18547): one shrinks a token to the rank, one expands it
and adds it to what the layer gave. The reference implementation, which runs everywhere else, is
`luthier.kernels._rows.added_rows`.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton import cdiv, next_power_of_2

WIDE = 128
"""Numbers of a token that one program takes at a time."""
THIN = 16
"""The least rank that a program holds."""


def added_rows(y: Tensor, x: Tensor, a: Tensor, b: Tensor, index: Tensor) -> None:
    """y[i] += (x[i] A[j]ᵀ) B[j], j = index[i]; y [n, t, d_out], x [n, t, d_in], A [k, r, d_in], B [k, r, d_out], all
    contiguous, the last two float32; index [n]."""
    rows, tokens, width = x.shape
    rank, height = a.shape[1], b.shape[2]
    inner = a.new_empty(rows * tokens, rank)
    held = max(THIN, next_power_of_2(rank))
    _shrink[(rows * tokens,)](inner, x, a, index, tokens, width, rank, held, WIDE)
    _expand[(rows * tokens, cdiv(height, WIDE))](y, inner, b, index, tokens, height, rank, held, WIDE)


@triton.jit
def _shrink(inner, x, a, index, tokens, width, rank, HELD: tl.constexpr, WIDE: tl.constexpr):
    """inner[n] = A[j] x[n] of one token n."""
    token = tl.program_id(0)
    a += tl.load(index + token // tokens) * rank * width
    r = tl.arange(0, HELD)[:, None]
    total = tl.zeros((HELD,), tl.float32)
    for start in range(0, width, WIDE):
        d = start + tl.arange(0, WIDE)
        numbers = tl.load(x + token * width + d, d < width, 0).to(tl.float32)
        factor = tl.load(a + r * width + d[None], (r < rank) & (d < width)[None], 0)
        total += tl.sum(factor * numbers[None], 1)
    r = tl.arange(0, HELD)
    tl.store(inner + token * rank + r, total, r < rank)


@triton.jit
def _expand(y, inner, b, index, tokens, height, rank, HELD: tl.constexpr, WIDE: tl.constexpr):
    """y[n] += inner[n] B[j] of one token n, in a part of its width."""
    token = tl.program_id(0)
    b += tl.load(index + token // tokens) * rank * height
    r = tl.arange(0, HELD)
    d = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    numbers = tl.load(inner + token * rank + r, r < rank, 0)
    factor = tl.load(b + r[:, None] * height + d[None], (r < rank)[:, None] & (d < height)[None], 0)
    place = y + token * height + d
    there = tl.load(place, d < height, 0)
    tl.store(place, (there + tl.sum(factor * numbers[:, None], 0)).to(there.dtype), d < height)
