"""Hidden states at block boundaries, one point for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from luthier.core.contracts.statistic import Statistic


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _last(x: Tensor, mask: Tensor) -> Tensor:
    steps = torch.arange(mask.shape[1], device=mask.device)
    return x[torch.arange(len(x)), (steps * mask).argmax(1)]


def _first(x: Tensor, mask: Tensor) -> Tensor:
    return x[torch.arange(len(x)), mask.int().argmax(1)]


def _middle(x: Tensor, mask: Tensor) -> Tensor:
    place = (mask.cumsum(1) == mask.sum(1, keepdim=True).div(2, rounding_mode="floor") + 1) & mask
    return x[torch.arange(len(x)), place.int().argmax(1)]


POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "last": _last,
    "first": _first,
    "middle": _middle,
}


@dataclass(frozen=True)
class States(Statistic):
    """h_i: the hidden state that enters block i, one point per row

    Gives `states` [rows, d], float32, at every boundary of the stacks that hold a site. Rows follow the data, so
    point j is the same row at every boundary.
    """

    paper = "the point clouds of GeLoRA (Ed-dib et al. 2024, arXiv 2412.09250)"
    reads = "states"

    pool: Literal["mean", "last", "first", "middle"] = "mean"
    """How the tokens of a row become one point: their mean, or one of them."""

    def begin(self):
        return torch.empty(0, 0), 0

    def update(self, held, x, mask):
        x = x.flatten(1, -2) if x.dim() > 3 else x  # a grid of patches is a row of them
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        points = POOLS[self.pool](x.to(torch.promote_types(x.dtype, torch.float32)), mask)[mask.any(1)]
        buffer, count = held
        buffer = _roomy(buffer, count, points)
        buffer[count : count + len(points)] = points
        return buffer, count + len(points)

    def result(self, held):
        buffer, count = held
        return {"states": buffer[:count].clone()}


def _roomy(buffer: Tensor, count: int, points: Tensor) -> Tensor:
    """The buffer, doubled until the points fit: thousands of small tensors would scatter over the heap for good."""
    if count + len(points) <= len(buffer):
        return buffer
    larger = torch.empty(max(64, 2 * len(buffer), count + len(points)), points.shape[1])
    if count:
        larger[:count] = buffer[:count]
    return larger
