"""Low-rank terms outside training: in place, in float32 where few tokens make half-precision products expensive.

A sum of two formats runs number by number on a CPU, so a float32 term is rounded to its output's before it is added.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from luthier.core.adapters.call import entries

FEW = 32
"""Up to so many tokens, half-precision products this small take ten times as long as float32 ones on a CPU."""

SLACK = 4
"""Groups may be filled up to so many times the rows there are: the factors cost more than the rows, up to there."""

Add = Callable[[Tensor, Tensor], None]
"""`add(y, x)`: y [rows, ..., d_out] contiguous, changed in place; x [rows, ..., d_in]."""


def added(y: Tensor, x: Tensor, a: Tensor, b: Tensor, s: float) -> None:
    """y += s (x Aᵀ) Bᵀ in place; y [..., d_out] contiguous, x [..., d_in], A [r, d_in], B [d_out, r] in any float
    format."""
    if x.is_cpu and x.numel() == x.shape[-1]:
        return _added_token(y.view(-1), x.view(-1), a, b, s)
    y, x = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    if x.dtype == a.dtype:
        y.addmm_(functional.linear(x, a), b.mT, alpha=s)
    elif len(x) <= FEW and x.is_cpu:
        y.add_(functional.linear(functional.linear(x.to(a.dtype), a), b).to(y.dtype), alpha=s)
    else:
        y.addmm_(functional.linear(x, a.to(x.dtype)), b.mT.to(x.dtype), alpha=s)


def _added_token(y: Tensor, x: Tensor, a: Tensor, b: Tensor, s: float) -> None:
    """`added` for vectors, which need no transposed copy of B, in as few calls as there can be."""
    if x.dtype == a.dtype:
        y.addmv_(b, torch.mv(a, x), alpha=s)
    else:
        y.add_(torch.mv(b, torch.mv(a, x.to(a.dtype))).to(y.dtype), alpha=s)


def added_rows(y: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
    """y += (x Aᵀ) B row by row; y [n, t, d_out], x [n, t, d_in], A [n, r, d_in], B [n, r, d_out], all of one dtype."""
    y.baddbmm_(torch.bmm(x, a.mT), b)


class Rows:
    """The factors of several adapters, one after the other, for rows that use one of them each."""

    def __init__(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """a and b hold A [r_i, d_in] and s Bᵀ [r_i, d_out] of every adapter, of any ranks."""
        self.a, self.b = _stacked(a), _stacked(b)
        self.gathered = _gathered() if self.a.is_cuda and self.a.dtype == torch.float32 else None

    def adder(self, rows: tuple[int | None, ...]) -> Add:
        """What adds s (x Aᵀ) Bᵀ with the factors numbered rows[i] to row i, and leaves rows of None as they are."""
        count, device, n = len(self.a) - 1, self.a.device, len(rows)
        index = _tensor([count if row is None else row for row in rows], device)
        if (gathered := self.gathered) is not None:
            few, most = (lambda y, x: gathered(y, x.contiguous(), self.a, self.b, index)), FEW
        else:
            groups = Groups.of(rows, count, device)
            if not groups.count:
                return lambda y, x: None
            few, most = groups.adder(self.a[:-1], self.b[:-1]), self.a.shape[1]
        shape, limit = (n, -1, self.a.shape[2]), most * n * self.a.shape[2]

        def add(y: Tensor, x: Tensor) -> None:
            entries(x, n)
            y, x = (y, x) if x.dim() == 3 and len(x) == n else (y.view(n, -1, y.shape[-1]), x.reshape(shape))
            if x.numel() <= limit:
                few(y, x)
            else:  # then a row is larger than its factors
                added_rows(y, x, self.a.to(x.dtype)[index], self.b.to(x.dtype)[index])

        return add


@dataclass(frozen=True)
class Groups:
    """Rows sorted by adapter, so that factors are read once for all rows that use them: groups of one size, filled up
    with any row. All layers with the same adapters share them."""

    count: int
    factors: Tensor | None
    """The number of each group's adapter [groups]; None: every adapter has one group, in their order."""
    take: Tensor | None
    """The row in each place of the groups [groups · size]; None: the rows are groups as they come."""
    give: Tensor
    """The places of the rows that have an adapter."""
    own: Tensor | None
    """The numbers of these rows; None for all."""

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(rows: tuple[int | None, ...], count: int, device: torch.device) -> Groups:
        """Returns the groups of `rows`, each with the number of one of `count` adapters."""
        members = {k: [i for i, row in enumerate(rows) if row == k] for k in range(count)}
        longest = max(map(len, members.values()))
        own = sorted(row for each in members.values() for row in each)
        pieces, whole = list(members.items()), count * longest <= SLACK * len(rows)
        if not whole:  # some adapters have many rows, or most have none: as many groups as it takes, of copied factors
            longest = -(-len(own) // max(1, sum(map(bool, members.values()))))
            pieces = [(k, each[i : i + longest]) for k, each in members.items() for i in range(0, len(each), longest)]
        take = [row for _, each in pieces for row in (each + [0] * longest)[:longest]]
        places = {row: g * longest + i for g, (_, each) in enumerate(pieces) for i, row in enumerate(each)}
        return Groups(
            len(pieces) if own else 0,
            None if whole else _tensor([k for k, _ in pieces], device),
            None if take == list(range(len(rows))) == own else _tensor(take, device),
            _tensor([places[row] for row in own], device),
            None if len(own) == len(rows) else _tensor(own, device),
        )

    def adder(self, a: Tensor, b: Tensor) -> Add:
        """What adds (x Aᵀ) B with the factors of each row's group, A [adapters, r, d_in] and B [adapters, r, d_out]."""
        if self.factors is not None:
            a, b = a[self.factors], b[self.factors]
        return partial(self._sorted if self.take is None else self._mixed, a, b)

    def _sorted(self, a: Tensor, b: Tensor, y: Tensor, x: Tensor) -> None:
        if len(y) != self.count:
            y, x = y.view(self.count, -1, y.shape[-1]), x.reshape(self.count, -1, x.shape[-1])
        low = _low(a, x)
        if y.dtype == b.dtype:
            y.baddbmm_(low, b)
        else:
            y.add_(torch.bmm(low, b).to(y.dtype))

    def _mixed(self, a: Tensor, b: Tensor, y: Tensor, x: Tensor) -> None:
        assert self.take is not None
        low = _low(a, x.index_select(0, self.take).view(self.count, -1, x.shape[-1]))
        change = torch.bmm(low, b).to(y.dtype).view(-1, *y.shape[1:]).index_select(0, self.give)
        if self.own is None:
            y.add_(change)
        else:
            y.index_add_(0, self.own, change)


def _low(a: Tensor, x: Tensor) -> Tensor:
    """x Aᵀ [groups, t, r], in A's dtype; for few tokens, A on the left is the faster product."""
    return torch.bmm(a, (x if x.dtype == a.dtype else x.to(a.dtype)).mT).mT


@functools.cache
def _gathered() -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] | None:
    """The Triton path, where it can run."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("luthier.kernels._gathered").added_rows


def _stacked(factors: Sequence[Tensor]) -> Tensor:
    """The factors [r_i, d], filled up with zeros to the largest rank, and zeros for no adapter: [factors + 1, r, d]."""
    stack = factors[0].new_zeros(len(factors) + 1, max(len(f) for f in factors), factors[0].shape[1])
    for place, factor in zip(stack, factors, strict=False):
        place[: len(factor)] = factor
    return stack


def _tensor(numbers: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long, device=device)
