"""Products of tokens with the matrix of the expert that each is sent to: sorted by expert, one grouped product.

The reference implementation is a loop over experts, `torch.cat([x[i] @ w[i] for i in experts])`, which of many experts
spends its time on starting small products (`python -m bench experts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

grouped_mm: Any = getattr(torch.nn.functional, "grouped_mm", None)
"""torch's grouped product; None before the releases that have it, where no dtype is `GROUPED`."""
GROUPED = (torch.float32, torch.bfloat16, torch.float16) if grouped_mm else ()
"""The dtypes that torch's grouped product takes."""
FEW = 2
"""Up to so many pairs for each expert there is, a gathered matrix each costs less than to sort them."""
ALIGNED = 16
"""Bytes that its rows have to begin at a multiple of."""


@dataclass(frozen=True)
class Sent:
    """Tokens that are sent to experts, in the order of the experts."""

    token: Tensor
    """The token of each pair [pairs]."""
    expert: Tensor
    """The expert of each pair [pairs], ascending."""
    choice: Tensor
    """The place of each pair among the choices [tokens · top], as `choices.flatten()` has them."""
    experts: int

    @staticmethod
    def by(choices: Tensor, experts: int) -> Sent | Few:
        """Sorts the pairs of `choices` [tokens, top], each token's experts; a few pairs without gradients stay."""
        flat, compiled = choices.flatten(), torch.compiler.is_compiling()
        if not compiled and len(flat) <= FEW * experts and not torch.is_grad_enabled():
            return Few(flat, choices.shape[1])
        order = flat.argsort(stable=True)
        return Sent(order // choices.shape[1], flat[order], order, experts)

    def weights(self, w: Tensor) -> Tensor:
        """Returns the weight of each pair [pairs, 1]; w [tokens, top]."""
        return w.flatten()[self.choice][:, None]

    def counts(self) -> Tensor:
        """Returns how many pairs each expert has [experts]."""
        return torch.bincount(self.expert, minlength=self.experts)

    def spread(self, x: Tensor) -> Tensor:
        """Returns what a token has, for each of its pairs [pairs, d]; x [tokens, d]."""
        return x.index_select(0, self.token)

    def summed(self, x: Tensor, tokens: int) -> Tensor:
        """Returns the sum over the pairs of each token, [tokens, d]; x [pairs, d]."""
        return x.new_zeros(tokens, x.shape[-1]).index_add(0, self.token, x)

    def added(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Returns y + s B_k A_k x of each pair, [pairs, d_out]; x [pairs, d_in], A [experts, rank, d_in], B [experts,
        d_out, rank]."""
        return y + self.times(scale * self.times(x, a.mT), b.mT)

    def times(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns x_i w[expert of i], [pairs, d_out]; x [pairs, d_in], w [experts, d_in, d_out]."""
        if torch.compiler.is_compiling():  # one graph knows no sizes that follow from the routing
            return everywhere(x, w, self.expert)
        if x.dtype in GROUPED and x.dtype == w.dtype and _aligned(x, w):
            ends = self.counts().cumsum(0).to(torch.int32)
            return _Dense.apply(grouped_mm(x.contiguous(), w.contiguous(), offs=ends))
        return padded(x, w, self.expert, self.counts())


@dataclass(frozen=True)
class Few:
    """The same of so few pairs that each gathers its expert's matrix, in the order of the tokens."""

    expert: Tensor
    """The expert of each pair [tokens · top]."""
    top: int

    def weights(self, w: Tensor) -> Tensor:
        """As `Sent.weights`."""
        return w.flatten()[:, None]

    def spread(self, x: Tensor) -> Tensor:
        """As `Sent.spread`."""
        return x[:, None].expand(-1, self.top, -1).flatten(0, 1)

    def summed(self, x: Tensor, tokens: int) -> Tensor:
        """As `Sent.summed`."""
        return x.unflatten(0, (tokens, self.top)).sum(1)

    def added(self, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """As `Sent.added`."""
        inner = torch.bmm(a.index_select(0, self.expert), x[..., None])
        return torch.baddbmm(y[..., None], b.index_select(0, self.expert), inner, alpha=scale).squeeze(-1)

    def times(self, x: Tensor, w: Tensor) -> Tensor:
        """As `Sent.times`; the matrices are gathered as they lie, transposed."""
        return torch.bmm(w.mT.index_select(0, self.expert), x[..., None]).squeeze(-1)


def _aligned(x: Tensor, w: Tensor) -> bool:
    return all(size * x.element_size() % ALIGNED == 0 for size in w.shape[1:])


def padded(x: Tensor, w: Tensor, expert: Tensor, counts: Tensor) -> Tensor:
    """Returns the same by one batched product, in which every expert has as many places as the busiest has tokens."""
    most = int(counts.max()) if len(expert) else 0
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(x), device=x.device) - starts[expert] + expert * most
    filled = x.new_zeros(len(w) * most, x.shape[1]).index_copy(0, place, x)
    return torch.bmm(filled.view(len(w), most, -1), w).flatten(0, 1).index_select(0, place)


def everywhere(x: Tensor, w: Tensor, expert: Tensor) -> Tensor:
    """Returns the same out of the products with all experts, whose shapes are known before the routing."""
    every = torch.einsum("nd,edo->neo", x, w)
    return every.gather(1, expert[:, None, None].expand(-1, 1, w.shape[-1])).squeeze(1)


class _Dense(torch.autograd.Function):
    """The identity; its gradient is dense, as the grouped product's backward pass asks."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return dy.contiguous()
