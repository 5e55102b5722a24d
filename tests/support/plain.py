"""Element by element, as the papers write it: what the methods are compared with."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from luthier.core.contracts.combination import Place
from luthier.core.contracts.site import Site
from luthier.core.numerics.delta import Delta


def place(*shape: int, layer: int | None = 0, depth: int = 4, path: str = "x.weight", **settings) -> Place:
    rows, columns = (1, *shape)[-2:]
    site = Site(path, "param", columns, rows, layer)
    return Place(site, shape, depth, lambda: torch.zeros(shape, dtype=torch.float64), **settings)


def dense(*shape: int, count: int = 3, seed: int = 0) -> list[Delta]:
    generator = torch.Generator().manual_seed(seed)
    return [Delta.dense_of(torch.randn(shape, generator=generator, dtype=torch.float64)) for _ in range(count)]


def entries(tensor: Tensor):
    return itertools.product(*map(range, tensor.shape))


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def ties(deltas: list[Tensor], weights: list[float], density: float, scale: float) -> Tensor:
    kept = []
    for delta in deltas:
        ranked = sorted((abs(float(delta[at])) for at in entries(delta)), reverse=True)
        least = ranked[max(1, int(density * len(ranked))) - 1]
        kept.append({at: float(delta[at]) if abs(float(delta[at])) >= least else 0.0 for at in entries(delta)})
    sums = {at: math.fsum(w * k[at] for w, k in zip(weights, kept, strict=True)) for at in entries(deltas[0])}
    most = sign(sum(sign(value) for value in sums.values()))
    out = torch.zeros_like(deltas[0])
    for at, total in sums.items():
        wanted = sign(total) or most
        pairs = [(w, k[at]) for w, k in zip(weights, kept, strict=True) if sign(w * k[at]) == wanted and wanted]
        if pairs:
            out[at] = scale * sum(w * v for w, v in pairs) / sum(abs(w) for w, _ in pairs)
    return out


def breadcrumbs(delta: Tensor, gamma: float, beta: float) -> Tensor:
    out = torch.zeros_like(delta)
    for row, new in zip(delta.reshape(-1, delta.shape[-1]), out.view(-1, delta.shape[-1]), strict=True):
        order = sorted(range(len(row)), key=lambda i: -abs(float(row[i])))
        first = min(int(gamma * len(row)), len(row) - 1)
        for i in order[first : first + max(1, int(beta * len(row)))]:
            new[i] = row[i]
    return out
