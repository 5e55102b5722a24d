"""Low-rank terms in training.

What lies between two thin factors is [ranks, tokens]: with their long side last in memory products are up to three
times as fast. The ranks of layers that read the same tensor lie above each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def together(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A of all layers, [ranks, d_in]."""
    return torch.cat([down.to(dtype) for down in downs])  # a copy even of one: autograd gives no input out as an output


def scaled(ups: Sequence[Tensor], scales: Sequence[float], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """s Bᵀ of each layer, [rank, d_out]."""
    return tuple((s * up.mT).to(dtype).contiguous() for s, up in zip(scales, ups, strict=True))


def factor_gradients(
    ups: Sequence[Tensor],
    reached: Sequence[Tensor],
    h: Tensor,
    times: Callable[[Tensor], Tensor],
    scales: Sequence[float],
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """(dh [ranks, tokens], dA of each, dB of each), from the gradients [tokens, d_out] that reached each layer's term.

    times(dh) is dh @ what A read [tokens, d_in].
    """
    sizes = [len(up) for up in ups]
    dh = torch.cat([up @ dy.mT for up, dy in zip(ups, reached, strict=True)])
    dbs = [s * (part @ dy).mT for s, part, dy in zip(scales, h.split(sizes), reached, strict=True)]
    return dh, times(dh).split(sizes), dbs


def through(gradients: Sequence[Tensor], dh: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
    """The gradient of x [tokens, d_in]: Σ of what came through the layers, + dhᵀ A where x was kept; in place."""
    dx, *others = gradients
    for other in others:
        dx.add_(other)
    return dx.addmm_(dh.mT, a) if mask is None else dx.add_((dh.mT @ a).mul_(mask.view(dx.shape)))
