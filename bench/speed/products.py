"""The bare floor of a low-rank step: LoRA's thin products beside those of the frozen layers.

No model, no autograd, nothing between layers: the least that LoRA's equation costs in the library of this machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from bench.speed.machine import Size, device, seconds
from torch.nn import functional

RANK, TURNS = 8, 11


def products(size: Size, dtype: torch.dtype) -> dict[str, float]:
    """{"thin", "layers"}: seconds of a step in LoRA's products on all linear layers, and in the layers' own."""
    hidden, inside = size.hidden, size.intermediate
    found = {"thin": 0.0, "layers": 0.0}
    for d_in, d_out, count in ((hidden, hidden, 4), (hidden, inside, 2), (inside, hidden, 1)):
        works = _works(d_in, d_out, size.batch * size.length, dtype)
        times = [{name: seconds(work) for name, work in works.items()} for _ in range(TURNS + 1)][1:]
        for name in found:
            found[name] += count * size.layers * statistics.median(turn[name] for turn in times)
    return found


def _works(d_in: int, d_out: int, tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    with device():
        w, x, dy = (torch.randn(*shape).to(dtype) for shape in ((d_out, d_in), (tokens, d_in), (tokens, d_out)))
        a, up = torch.randn(RANK, d_in).to(dtype), torch.randn(RANK, d_out).to(dtype)
        y, dx = torch.empty_like(dy), torch.empty_like(x)

    def layers() -> None:
        functional.linear(x, w)
        functional.linear(dy, w.mT)

    def thin() -> None:
        inner = x @ a.mT
        y.addmm_(inner, up)
        dinner = dy @ up.mT
        torch.mm(inner.mT, dy)  # the gradient of B
        torch.mm(dinner.mT, x)  # the gradient of A
        dx.addmm_(dinner, a)

    return {"layers": layers, "thin": thin}
