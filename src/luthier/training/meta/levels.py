"""Four levels of a vision model's states, each as tokens of one grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

from torch import Tensor
from torch.nn import functional

LEVELS = 4


def levels_of(states: Sequence[Tensor], grid: int) -> list[Tensor]:
    """Returns four [n, grid², d_l] of the hidden states of a model, the embeddings first.

    Of a model whose states shrink on the way (Hiera, Swin), the last state of each of its last four sizes; of others,
    the states behind each quarter of the blocks. Tokens without a place, such as [CLS], are left.
    """
    maps = [_map(state) for state in states[1:]]
    ends = [
        each for each, behind in zip(maps, [*maps[1:], None], strict=True) if behind is None or _other(each, behind)
    ]
    quarters = [maps[max(0, len(maps) * level // LEVELS - 1)] for level in range(1, LEVELS + 1)]
    return [_gridded(each, grid) for each in (ends[-LEVELS:] if len(ends) >= LEVELS else quarters)]


def _other(one: Tensor, other: Tensor) -> bool:
    return one.shape[1:] != other.shape[1:]


def _map(state: Tensor) -> Tensor:
    """[n, d, h, w] of a square picture's state: [n, tokens, d], or with h and w before or behind d."""
    if state.dim() == 3:
        side = isqrt(state.shape[1])
        return state[:, state.shape[1] - side * side :].mT.unflatten(-1, (side, side))
    return state.permute(0, 3, 1, 2) if state.shape[1] == state.shape[2] else state


def _gridded(state: Tensor, grid: int) -> Tensor:
    if state.shape[-1] > grid:
        state = functional.adaptive_avg_pool2d(state, grid)
    elif state.shape[-1] < grid:
        state = functional.interpolate(state, size=(grid, grid), mode="bilinear")
    return state.flatten(2).mT
