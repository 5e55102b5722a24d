"""Exact Euclidean nearest neighbours of many wide points in bounded memory.

A float32 matrix product proposes candidates from |x|² + |y|² - 2 x·y of the centred points. That expression cancels for
close points, so the candidates' distances are taken again from differences in float64, which also measures the
proposal's own error. A row whose winners this error leaves in doubt is searched again with a float64 product, and, if
still in doubt, from the differences to all points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import LACKING

MEMORY = 512 * 2**20
"""Bytes that a search takes on top of the points and of its result."""
Track = Callable[[Sequence[Tensor]], Iterable[Tensor]]

SPARE = 8  # candidates beyond k: the wider the gap behind the k-th, the fewer rows are left in doubt
SAFETY = 4.0  # times the largest error seen among the candidates of a block
TOLERANCE = 1e-9  # relative, of a squared distance: ties need no second search


class Cloud(NamedTuple):
    """Points [n, d] of any floating type, their mean [d] in float64, and the bytes that a search may take."""

    points: Tensor
    mean: Tensor
    memory: int

    def centred(self, rows: Tensor | slice, dtype: torch.dtype) -> Tensor:
        """Returns the rows less the mean; a copy, for a slice of the points is a view of what the caller owns."""
        return self.points[rows].to(torch.promote_types(dtype, self.points.dtype), copy=True).sub_(self.mean).to(dtype)


def checked(points: Tensor) -> Tensor:
    """Returns the points, if they are a matrix of finite floating numbers."""
    if points.ndim != 2 or not points.is_floating_point():
        kind = f"a {points.dtype} tensor of shape {list(points.shape)}"
        raise LuthierError(f"expected points as a floating tensor [n, d], found {kind}; pass one row for each point.")
    bad = sum(int((~block.isfinite().all(1)).sum()) for block in points.split(1024))
    if bad:
        raise LuthierError(f"{bad} of {len(points)} points hold NaN or infinity; drop them, or find what made them.")
    # Apple's GPU has no float64, and the distances need it.
    return points.detach().cpu() if points.device.type in LACKING else points.detach()


def distinct(points: Tensor) -> Tensor:
    """Returns the indices [m], ascending, of the points [n, d] that repeat no earlier one exactly.

    The other n - m are duplicates; 0 and -0 are equal.
    """
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[points.element_size()]
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (points.shape[1],), generator=generator).mul(2).add(1).to(points.device)
    # Whole-number hashes: the same in any order of summation, unlike a random projection. Adding 0 turns -0 into 0.
    hashes = torch.empty(len(points), dtype=torch.long, device=points.device)
    for block, part in zip(points.split(256), hashes.split(256), strict=True):
        part.copy_((block + 0.0).view(words).long().mul_(odd).sum(1))
    _, group = hashes.unique(return_inverse=True)
    first = torch.full_like(group, len(group)).scatter_reduce_(0, group, torch.arange(len(group)).to(group), "amin")
    rows = torch.arange(len(group), device=group.device)
    kept = first[group] == rows
    for later in rows[~kept].split(1024):  # a hash may collide; the rows themselves decide
        kept[later] = (points[later] != points[first[group[later]]]).any(1)
    return rows[kept]


def neighbours(points: Tensor, k: int = 2, *, memory: int = MEMORY, track: Track = iter) -> Tensor:
    """Distances [n, k], float64 and ascending, from each of the points [n, d] to its k nearest others.

    Exact to float64 for points of any floating type, on any device. Takes about `memory` bytes on top of the points;
    `track` wraps the sequence of blocks, to show progress.
    """
    points = checked(points)
    if not 1 <= k < len(points):
        raise LuthierError(f"{len(points)} points have no {k} nearest neighbours each; pass 1 <= k < points.")
    mean = torch.zeros(points.shape[1], dtype=torch.float64, device=points.device)
    for block in points.split(256):
        mean += block.sum(0, dtype=torch.float64) / len(points)
    cloud = Cloud(points, mean, memory)
    found = torch.empty(len(points), k, dtype=torch.float64, device=points.device)
    left = torch.arange(len(points), device=points.device)
    for dtype in (torch.float32, torch.float64)[points.dtype == torch.float64 :]:
        doubtful = [left[:0]]
        for rows in track(left.split(side(cloud, dtype))) if len(left) else ():
            found[rows], sure = search(cloud, rows, k, dtype)
            doubtful.append(rows[~sure])
        left = torch.cat(doubtful)
    for row in left.tolist():
        found[row] = plainly(cloud, row, k)
    return found.sqrt_()


def side(cloud: Cloud, dtype: torch.dtype) -> int:
    """Rows of a block: two blocks of points and two of products fill half the memory, the recomputation the rest."""
    numbers, width = cloud.memory // (4 * dtype.itemsize), cloud.points.shape[1]
    return max(1, int(((width**2 + 4 * numbers) ** 0.5 - width) / 2))


def search(cloud: Cloud, rows: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Squared distances [b, k] of the rows, and whether [b] they are surely the k smallest."""
    proposed, candidates = propose(cloud, rows, min(k + SPARE, len(cloud.points) - 1), dtype)
    exact = recompute(cloud, rows, candidates)
    nearest = exact.topk(k, largest=False).values
    if candidates.shape[1] == len(cloud.points) - 1:
        return nearest, torch.ones_like(rows, dtype=torch.bool)
    # A rounding error grows with the squared norms; a rival of the winners lies as far out as the row itself, give or
    # take their distance.
    norm = norms(cloud, rows)
    scale = norm.sqrt().add(nearest[:, -1].sqrt()).square().add(norm)
    error = ((proposed - exact).abs() / scale[:, None].clamp_min(1e-300)).max()
    cutoff = proposed.max(1).values - SAFETY * error * scale
    return nearest, cutoff >= nearest[:, -1] * (1 - TOLERANCE)


def propose(cloud: Cloud, rows: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The `count` nearest points of each row by the matrix product: squared distances and indices [b, count]."""
    x = cloud.centred(rows, dtype)
    own = x.square().sum(1)
    values = torch.empty(len(rows), 0, dtype=dtype, device=x.device)
    indices = torch.empty(len(rows), 0, dtype=torch.long, device=x.device)
    step = side(cloud, dtype)
    for start in range(0, len(cloud.points), step):
        y = cloud.centred(slice(start, start + step), dtype)
        with torch.autocast(x.device.type, enabled=False):
            squared = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
        inside = (rows >= start) & (rows < start + step)
        squared[inside, rows[inside] - start] = torch.inf  # no point is its own neighbour
        best = squared.topk(min(count, len(y)), largest=False, sorted=False)
        values, indices = torch.cat([values, best.values], 1), torch.cat([indices, best.indices + start], 1)
        if values.shape[1] > count:
            values, order = values.topk(count, largest=False, sorted=False)
            indices = indices.gather(1, order)
    return (values + own[:, None]).double(), indices


def recompute(cloud: Cloud, rows: Tensor, candidates: Tensor) -> Tensor:
    """Squared distances [b, c] of the rows to their candidates [b, c], from differences in float64."""
    each = candidates.shape[1] * cloud.points.shape[1] * 8 * 4  # bytes of a row: the copies and their difference
    parts = []
    for own, others in zip(*(t.split(max(1, cloud.memory // each)) for t in (rows, candidates)), strict=True):
        gap = cloud.points[others].double().sub_(cloud.points[own].double()[:, None])
        parts.append(gap.square_().sum(-1))
    return torch.cat(parts)


def norms(cloud: Cloud, rows: Tensor) -> Tensor:
    """Squared distances [b] to the mean."""
    step = max(1, cloud.memory // (cloud.points.shape[1] * 8 * 4))
    return torch.cat([cloud.centred(part, torch.float64).square_().sum(1) for part in rows.split(step)])


def plainly(cloud: Cloud, row: int, k: int) -> Tensor:
    """Returns the k smallest squared distances of one row, from the differences to all points."""
    step = max(1, cloud.memory // (cloud.points.shape[1] * 8 * 4))
    own = cloud.points[row].double()
    squared = torch.cat([(block.double() - own).square_().sum(1) for block in cloud.points.split(step)])
    squared[row] = torch.inf
    return squared.topk(k, largest=False).values.sort().values
