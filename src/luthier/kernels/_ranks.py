"""Low-rank terms in training.

What lies between two thin factors is [ranks, tokens]: with their long side last in memory products are up to three
times as fast. The ranks of layers that read the same tensor lie above each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def together(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A of all layers, [ranks, d_in]."""
    return torch.cat([down.to(dtype) for down in downs])  # a copy even of one: autograd gives no input out as an output


def scaled(ups: Sequence[Tensor], scales: Sequence[float], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """s Bᵀ of each layer, [rank, d_out]."""
    return tuple((s * up.mT).to(dtype).contiguous() for s, up in zip(scales, ups, strict=True))


def through(gradients: Sequence[Tensor], dh: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
    """The gradient of x [tokens, d_in]: Σ of what came through the layers, + dhᵀ A where x was kept; in place."""
    dx, *others = gradients
    for other in others:
        dx.add_(other)
    return dx.addmm_(dh.mT, a) if mask is None else dx.add_((dh.mT @ a).mul_(mask.view(dx.shape)))
