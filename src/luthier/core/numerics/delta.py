"""Deltas: changes of a weight under one algebra, whatever they are made of. Merging stands on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Delta:
    """A change of a tensor: B A + a sparse part + a dense part, any of which may be missing."""

    shape: tuple[int, ...]
    B: Tensor | None = None
    """Left factor [d_out, r]."""
    A: Tensor | None = None
    """Right factor [r, d_in]."""
    index: Tensor | None = None
    """Flat positions of the sparse entries, unique and sorted."""
    values: Tensor | None = None
    full: Tensor | None = None
    """The dense part."""

    @classmethod
    def low_rank(cls, b: Tensor, a: Tensor) -> Delta:
        """Creates the low-rank change B A."""
        return cls((b.shape[0], a.shape[1]), B=b, A=a)

    @classmethod
    def sparse(cls, shape: tuple[int, ...], index: Tensor, values: Tensor) -> Delta:
        """Entries `values` at the flat positions `index`."""
        order = index.argsort()
        return cls(shape, index=index[order], values=values[order])

    @classmethod
    def dense_of(cls, full: Tensor) -> Delta:
        """Returns a dense change."""
        return cls(tuple(full.shape), full=full)

    @classmethod
    def zero(cls, *shape: int) -> Delta:
        """Creates a change of nothing."""
        return cls(shape)

    @property
    def is_zero(self) -> bool:
        """It has no part at all (parts whose numbers are 0 count as parts)."""
        return self.B is None and self.index is None and self.full is None

    @property
    def is_sparse(self) -> bool:
        """It has a sparse part and no other."""
        return self.index is not None and self.B is None and self.full is None

    @property
    def rank(self) -> int | None:
        """Upper bound of the rank, for a purely low-rank delta."""
        return None if self.B is None or self.full is not None or self.index is not None else self.B.shape[1]

    def dense(self) -> Tensor:
        """Returns the change as one tensor of `shape`."""
        parts = [t for t in (self.full, self._product(), self._scattered()) if t is not None]
        if not parts:
            return torch.zeros(self.shape)
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _product(self) -> Tensor | None:
        return None if self.B is None or self.A is None else self.B @ self.A

    def _scattered(self) -> Tensor | None:
        if self.index is None or self.values is None:
            return None
        flat = self.values.new_zeros(torch.Size(self.shape).numel())
        return flat.index_put((self.index,), self.values).reshape(self.shape)

    def __mul__(self, factor: float) -> Delta:
        scaled = lambda t: None if t is None else factor * t  # noqa: E731
        return replace(self, B=scaled(self.B), values=scaled(self.values), full=scaled(self.full))

    __rmul__ = __mul__

    def __neg__(self) -> Delta:
        return -1.0 * self

    def __sub__(self, other: Delta) -> Delta:
        """The difference; its structure is that of the sum."""
        return self + -other

    def __add__(self, other: Delta) -> Delta:
        """The sum; low-rank parts are stacked, sparse ones united, so no structure is lost."""
        if self.shape != other.shape:
            raise LuthierError(f"deltas of shapes {self.shape} and {other.shape} cannot be added.")
        index, values = _united(self, other)
        return Delta(
            self.shape,
            B=_joined(self.B, other.B, 1),
            A=_joined(self.A, other.A, 0),
            index=index,
            values=values,
            full=other.full if self.full is None else self.full if other.full is None else self.full + other.full,
        )

    def norm(self) -> float:
        """Frobenius norm; a low-rank one is not multiplied out."""
        if self.rank is not None and self.B is not None and self.A is not None:
            squared = ((self.B.mT @ self.B) * (self.A @ self.A.mT)).sum()
            return float(squared.clamp(min=0).sqrt())
        if self.is_sparse and self.values is not None:
            return float(self.values.norm())
        return float(self.dense().norm())

    def top(self, k: int) -> Delta:
        """Returns the k entries of largest magnitude, as a sparse delta."""
        flat = self.dense().flatten()
        index = flat.abs().topk(min(k, flat.numel())).indices
        return Delta.sparse(self.shape, index, flat[index])

    def nonzero(self) -> Delta:
        """The entries that are not 0, as a sparse delta."""
        flat = self.dense().flatten()
        index = flat.nonzero()[:, 0]
        return Delta.sparse(self.shape, index, flat[index])

    def united(self) -> Delta:
        """The same change with each sparse position once and those whose number is 0 left out."""
        index, values = _united(self, Delta.zero(*self.shape))
        if index is None or values is None:
            return self
        return replace(self, index=index[values != 0], values=values[values != 0])

    def padded(self, rows: int) -> Delta:
        """Returns the change with rows of zeros below, `rows` in all; its structure stays."""
        more = rows - self.shape[0]
        if more < 0:
            raise LuthierError(f"a delta of {self.shape[0]} rows cannot be padded to {rows}.")

        def below(t: Tensor | None) -> Tensor | None:
            return None if t is None else torch.cat([t, t.new_zeros(more, *t.shape[1:])])

        return replace(self, shape=(rows, *self.shape[1:]), B=below(self.B), full=below(self.full))

    def apply(self, weight: Tensor) -> Tensor:
        """weight + the change, in the wider dtype of the two, of the weight's shape."""
        if self.is_sparse and self.index is not None and self.values is not None:
            wide = torch.promote_types(weight.dtype, self.values.dtype)
            flat = weight.to(wide).flatten()  # a copy where the dtype changes, and index_add is out of place
            return flat.index_add(0, self.index, self.values.to(wide)).reshape(weight.shape)
        return weight if self.is_zero else weight + self.dense()

    def factor(self, rank: int) -> tuple[Delta, float]:
        """Returns the best low-rank delta (truncated SVD) and its relative error in Frobenius norm."""
        u, s, vt = self._svd()
        lost = float(s[rank:].norm() / s.norm().clamp(min=torch.finfo(s.dtype).tiny))
        return Delta.low_rank(u[:, :rank] * s[:rank], vt[:rank]), lost

    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of a low-rank delta through the QR factors of B and Aᵀ, so that nothing of full size is decomposed."""
        if self.rank is None or self.B is None or self.A is None or self.rank >= min(self.shape):
            return torch.linalg.svd(self.dense(), full_matrices=False)
        (left, b), (right, a) = torch.linalg.qr(self.B), torch.linalg.qr(self.A.mT)
        u, s, vt = torch.linalg.svd(b @ a.mT)
        return left @ u, s, vt @ right.mT


def _joined(first: Tensor | None, second: Tensor | None, dim: int) -> Tensor | None:
    both = [t for t in (first, second) if t is not None]
    return torch.cat(both, dim=dim) if both else None


def _united(first: Delta, second: Delta) -> tuple[Tensor | None, Tensor | None]:
    index, values = _joined(first.index, second.index, 0), _joined(first.values, second.values, 0)
    if index is None or values is None:
        return None, None
    unique, where = index.unique(return_inverse=True)
    return unique, values.new_zeros(len(unique)).index_add(0, where, values)
