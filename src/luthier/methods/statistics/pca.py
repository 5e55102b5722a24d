"""The principal components of what enters a site, a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

from luthier.core.contracts.statistic import Statistic, rows_of
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import exact

SPARE = 16
"""Directions kept beyond those asked for, at the least: what is cut off now may matter later."""
SKETCH = 8
"""Random mixtures of the new rows that join each update: by them it finds directions not met before."""


@dataclass(frozen=True)
class _Held:
    """What is known on the way."""

    count: int
    mean: Tensor
    """[d], float64"""
    total: float
    """Sum of the squared distances from the mean."""
    directions: Tensor
    """[q, d], orthonormal rows"""
    scale: Tensor
    """[q]: singular values of the centred rows"""
    waiting: Tensor
    """[m, d]: rows that are too few for an update of their own"""
    settled: bool = False


@dataclass(frozen=True)
class PCA(Statistic):
    """E[(x - μ) (x - μ)ᵀ] ≈ Vᵀ Λ V, the leading k directions

    Gives `pca` [k, d_in], float32, orthonormal rows in falling order, each with its largest entry positive, and
    `variance` [k], float64, the share of the total variance that each one explains; k is `components`, or d_in where
    that is less. The total is exact. Directions are those of the SVD of [Σ V; new rows; shift of the mean], as in
    incremental PCA, found by one step of subspace iteration from the kept ones and a random sketch of the new rows:
    each batch of n rows costs about 12 n d k operations, and O(d k) is kept. Twice as many directions are kept as asked
    for (at least 16 more), so that little is lost by cutting; nothing is where the data span no more than are kept.
    """

    paper = "Ross et al. 2008 (incremental PCA); Halko, Martinsson, Tropp 2011, arXiv 0909.4061 (the sketch)"

    components: int = 16
    """Directions that are wanted."""
    tolerance: float = 0.99
    """Settled once every direction's |cosine| with itself a batch earlier reaches this; at 1 all data are read."""

    def check(self) -> None:
        self.within("components", 1)
        self.above("tolerance", 0, 1)

    @property
    def kept(self) -> int:
        """Directions that are carried along, at the most."""
        return self.components + max(self.components, SPARE)

    def begin(self):
        return None

    def update(self, held, x, mask):
        if not x.is_floating_point():
            raise LuthierError("principal components are those of activations; a table is entered by token ids.")
        rows = rows_of(x, mask)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        held = _fresh(rows) if held is None else held
        rows = torch.cat([held.waiting, rows]) if len(held.waiting) else rows
        if len(rows) < self.kept:
            return replace(held, waiting=rows.clone())
        found = _absorb(held, rows, self.kept)
        return replace(found, settled=self._settled(held.directions, found.directions))

    def _settled(self, before: Tensor, now: Tensor) -> bool:
        if self.tolerance == 1 or not len(before):
            return False
        k = self.components
        return bool((before[:k] * now[:k]).sum(1).abs().min() >= self.tolerance)

    def done(self, held):
        return held.settled

    def result(self, held):
        found = _absorb(held, held.waiting, self.kept) if len(held.waiting) else held
        directions = found.directions[: self.components].float().cpu()
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        explained = found.scale[: self.components].cpu().double().square()
        return {
            "pca": directions * torch.where(largest < 0, -1.0, 1.0),
            "variance": explained / found.total if found.total else torch.zeros_like(explained),
        }

    def join(self, other):
        """The larger number of components; raises where one is to be settled before the other, in the same pass."""
        if self.tolerance != other.tolerance:
            raise LuthierError(
                f"ranks and start read the inputs in one pass, which is to end where components settle at "
                f"{self.tolerance:g} and at {other.tolerance:g}; give both one tau."
            )
        return PCA(max(self.components, other.components), self.tolerance)


def _fresh(rows: Tensor) -> _Held:
    none = _none(rows)
    return _Held(0, exact(torch.zeros_like(rows[0])), 0.0, none, rows.new_empty(0), none)


def _none(rows: Tensor) -> Tensor:
    """No rows [0, d]; an empty view would keep all of them in memory."""
    return rows.new_empty(0, rows.shape[1])


def _absorb(held: _Held, rows: Tensor, kept: int) -> _Held:
    """What is known with `rows` [n, d] added."""
    count, mean = held.count + len(rows), rows.mean(0)
    rows, moved = rows - mean, exact(mean) - held.mean
    weight = held.count * len(rows) / count
    spread = exact(vector_norm(rows, dim=1)).square().sum()  # one float32 sum over all would lose digits
    total = held.total + float(spread) + weight * float(moved.square().sum())
    known = torch.cat([held.scale[:, None] * held.directions, (weight**0.5 * moved).to(rows)[None]])
    directions, scale = _leading(known, rows, held.directions, kept, seed=held.count)
    return _Held(count, held.mean + moved * (len(rows) / count), total, directions, scale, _none(rows))


def _leading(known: Tensor, rows: Tensor, start: Tensor, kept: int, seed: int) -> tuple[Tensor, Tensor]:
    """The leading right singular vectors [kept, d] and values of [known; rows], searched for from `start`.

    From random mixtures alone, without a start, it takes more steps.
    """
    generator = torch.Generator().manual_seed(seed)
    mixtures = SKETCH if len(start) else kept + SKETCH
    draw = torch.randn(mixtures, len(rows), generator=generator, dtype=rows.dtype).to(rows.device)
    basis = torch.linalg.qr(torch.cat([start, draw @ rows]).mT).Q
    for _ in range(1 if len(start) else 3):
        basis = torch.linalg.qr(rows.mT @ (rows @ basis) + known.mT @ (known @ basis)).Q
    seen, kept_seen = rows @ basis, known @ basis
    inner = exact(seen.mT @ seen) + exact(kept_seen.mT @ kept_seen)
    values, vectors = torch.linalg.eigh(inner)
    order = values.argsort(descending=True)[:kept]
    directions = (basis @ vectors[:, order].to(basis)).mT.contiguous()
    return directions, values[order].clamp(min=0).sqrt().to(basis)
