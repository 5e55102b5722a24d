"""Run by Triton's interpreter (TRITON_INTERPRET=1, before Triton is loaded): errors of the Triton path, as JSON."""

from __future__ import annotations

import json

import torch

from luthier.kernels._gathered import added_rows
from luthier.kernels._rows import Rows

CASES = [(1, (2, 5, 1), 12, 20), (3, (17, 4, 8), 130, 260)]
"""Tokens of a row, ranks of the adapters, widths."""


def error(dtype: torch.dtype, tokens: int, ranks: tuple[int, ...], d_in: int, d_out: int) -> float:
    """The largest difference to the reference over the largest number; infinite if a row without adapter changed."""
    a, b = ([torch.randn(rank, width) for rank in ranks] for width in (d_in, d_out))
    x, y = torch.randn(5, tokens, d_in).to(dtype), torch.randn(5, tokens, d_out).to(dtype)
    plain, fast = Rows(a, b), Rows(a, b)
    fast.gathered = added_rows
    slow, quick = y.clone(), y.clone()
    for rows, out in ((plain, slow), (fast, quick)):
        rows.adder((2, None, 0, 1, 2))(out, x)
    found = (quick - slow).double().abs().max() / slow.double().abs().max()
    return float(found) if torch.equal(quick[1], y[1]) else float("inf")


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({str(d): [error(d, *case) for case in CASES] for d in (torch.float32, torch.bfloat16)}))
