"""Low-rank terms of several adapters in training: tokens lie in runs, each of one adapter or of none.

One grouped product for each factor, in both directions, whatever the number of adapters: A and B are stacked, and ranks
filled up with zeros. On a CPU, where a grouped product is itself a loop, runs add their products in place. The
reference implementation is a loop over the runs, `torch.cat([x_i A_iᵀ B_iᵀ for i in runs])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luthier.core.contracts.kernel import Part
from luthier.kernels._dropout import draw_mask, keep
from luthier.kernels._grouped import ALIGNED, GROUPED, grouped_mm


@dataclass(frozen=True)
class Term:
    """The term s_i (drop(x) A_iᵀ) B_iᵀ of the tokens of each run i."""

    sizes: tuple[int, ...]
    """Tokens of each run."""
    factors: tuple[int, ...]
    """The place of each run's factors in the stack; the last place are zeros, for runs of no adapter."""
    scales: tuple[float, ...]
    """s of each place."""
    mask: Tensor | None
    """True where x is kept, [tokens, d_in]; None without dropout."""

    def added(self, y: Tensor, x: Tensor, downs: Sequence[Tensor], ups: Sequence[Tensor]) -> Tensor:
        """Returns y [tokens, d_out] with the term added in place; x [tokens, d_in], A [r_i, d_in], B [d_out, r_i]."""
        how = _ByRun if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) else _Added
        return how.apply(y, x, self, *downs, *ups)  # type: ignore[return-value]


def term(parts: Sequence[Part], scales: Sequence[float], x: Tensor) -> tuple[Term, list[Part]]:
    """Returns the term of a layer that reads x [..., d_in], and the parts whose factors it wants, each adapter once."""
    own = list({id(part.p): part for part in parts if part.form is not None}.values())
    place = {id(part.p): index for index, part in enumerate(own)}
    scale = {id(part.p): s for part, s in zip(parts, scales, strict=True)}
    rates = {id(part.p): part.rate for part in parts}
    mask = None
    if any(rates.values()):
        flat = x.reshape(-1, x.shape[-1])
        rows = zip(parts, flat.split([part.tokens for part in parts]), strict=True)
        mask = torch.cat([_mask(part, seen, rates[id(part.p)]) for part, seen in rows])
    return Term(
        tuple(part.tokens for part in parts),
        tuple(place.get(id(part.p), len(own)) if part.form is not None else len(own) for part in parts),
        tuple(scale[id(part.p)] / keep(rates[id(part.p)]) for part in own),
        mask,
    ), own


def _mask(part: Part, x: Tensor, rate: float) -> Tensor:
    return part.drawn(lambda: draw_mask(x, rate)) if rate else torch.ones_like(x, dtype=torch.bool)


class _Added(torch.autograd.Function):
    """y + the term; keeps what A read (x, or x with dropout made anew) and h = drop(x) Aᵀ [tokens, rank].

    The stacks are made again in the backward pass: kept, those of a model's layers are as much as all its adapters.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, term: Term, *factors: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        ends, (a, b) = _ends(term, x.device), _stacks(term, factors, x)
        h = _times(x if term.mask is None else x * term.mask, a.mT, term.sizes, ends)
        y.add_(_times(h, b, term.sizes, ends))
        ctx.term = term
        ctx.save_for_backward(x, h, *factors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor):  # pyright: ignore
        x, h, *factors = ctx.saved_tensors
        term, count = ctx.term, len(ctx.term.scales)
        ends, (a, b) = _ends(term, x.device), _stacks(term, factors, x)
        dh = _times(dy, b.mT, term.sizes, ends)
        read = x if term.mask is None else x * term.mask
        das, dbs = _outer(dh, read, term.sizes, ends), _outer(h, dy, term.sizes, ends)
        if (index := _index(term, x.device)) is not None:
            das, dbs = (_summed(t, index, count) for t in (das, dbs))
        dx = _times(dh, a, term.sizes, ends)
        if term.mask is not None:
            dx = dx * term.mask
        dbs = _scaled(term, dbs[:count])
        downs = [da[: len(f)].to(f.dtype) for da, f in zip(das, factors[:count], strict=False)]
        ups = [db[: f.shape[1]].mT.to(f.dtype) for db, f in zip(dbs, factors[count:], strict=True)]
        return dy, dx, None, *downs, *ups


class _ByRun(torch.autograd.Function):
    """The same on a CPU, where torch's grouped product goes from run to run as well: here products add in place, and
    no factor is copied. What lies between A and B is [rank, tokens], with its long side last. (Half precision
    stays with the stacks: products in place round s.)"""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, term: Term, *factors: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        count, hs = len(term.scales), []
        xs, ys = (t.split(term.sizes) for t in (x if term.mask is None else x * term.mask, y))
        for place, part, own in zip(term.factors, xs, ys, strict=True):
            if place < count:
                a, b = (f.to(x.dtype) for f in (factors[place], factors[count + place]))
                hs.append(a @ part.mT)
                own.addmm_(hs[-1].mT, b.mT, alpha=term.scales[place])
        ctx.term, ctx.runs = term, len(hs)
        ctx.save_for_backward(x, *hs, *factors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor):  # pyright: ignore
        x, *kept = ctx.saved_tensors
        hs, factors, term, count = iter(kept[: ctx.runs]), kept[ctx.runs :], ctx.term, len(ctx.term.scales)
        found: list[Tensor | None] = [None] * len(factors)
        dx = torch.zeros_like(x)
        xs, dys, dxs = (t.split(term.sizes) for t in (x if term.mask is None else x * term.mask, dy, dx))
        for place, part, dpart, into in zip(term.factors, xs, dys, dxs, strict=True):
            if place < count:
                a, b = (f.to(x.dtype) for f in (factors[place], factors[count + place]))
                dh = (b.mT @ dpart.mT).mul_(term.scales[place])
                torch.mm(dh.mT, a, out=into)
                _add(found, place, dh @ part)
                _add(found, count + place, (next(hs) @ dpart).mul_(term.scales[place]).mT)
        if term.mask is not None:
            dx.mul_(term.mask)
        return dy, dx, None, *(g if g is None else g.to(f.dtype) for g, f in zip(found, factors, strict=True))


def _add(found: list[Tensor | None], place: int, more: Tensor) -> None:
    """Adds to the gradient of a factor, whose adapter may have several runs."""
    before = found[place]
    found[place] = more if before is None else before + more


def _stacks(term: Term, factors: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A [runs, rank, d_in] and s B [runs, rank, d_out] of each run. Ranks come first, in memory too: products in which
    the smallest side is the last one take two to three times as long on a CPU."""
    count = len(term.scales)
    down = _stack(factors[:count], x.dtype).to(x.dtype)
    up = _scaled(term, _stack([f.mT for f in factors[count:]], x.dtype)).to(x.dtype)
    if count in term.factors:  # runs of no adapter
        down, up = (functional.pad(t, (0, 0, 0, 0, 0, 1)) for t in (down, up))
    index = _index(term, x.device)
    return (down, up) if index is None else (down[index], up[index])


def _stack(factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The factors [r_i, d] one behind the other, filled up with zeros to one rank, as products in `dtype`
    want it: [factors, rank, d], in their own dtype."""
    step = ALIGNED * 8 // torch.finfo(dtype).bits
    rank = -(-max(len(f) for f in factors) // step) * step
    return torch.stack([f if len(f) == rank else functional.pad(f, (0, 0, 0, rank - len(f))) for f in factors])


def _scaled(term: Term, each: Tensor) -> Tensor:
    """[adapters, m, n] times s of each, in float32 at least: s itself has up to 0.4 % of error in bfloat16."""
    dtype = torch.promote_types(each.dtype, torch.float32)
    return each * torch.tensor(term.scales, dtype=dtype, device=each.device)[:, None, None]


def _ends(term: Term, device: torch.device) -> Tensor:
    return torch.tensor(list(accumulate(term.sizes)), dtype=torch.int32, device=device)


def _index(term: Term, device: torch.device) -> Tensor | None:
    """The factors of each run; None where every run has the factors at its own place."""
    if term.factors == tuple(range(len(term.factors))):
        return None
    return torch.tensor(term.factors, device=device)


def _summed(each: Tensor, index: Tensor, count: int) -> Tensor:
    """The gradients of each adapter, whose runs may be several."""
    return each.new_zeros(count + 1, *each.shape[1:]).index_add(0, index, each)


def _grouped(*tensors: Tensor) -> bool:
    return all(t.dtype in GROUPED and t.shape[-1] * t.element_size() % ALIGNED == 0 for t in tensors)


def _times(x: Tensor, w: Tensor, sizes: Sequence[int], ends: Tensor) -> Tensor:
    """x_i w_i of each run: x [tokens, d], w [runs, d, e]."""
    if _grouped(x, w, w.mT):
        return grouped_mm(x.contiguous(), w, offs=ends)
    return torch.cat([part @ own for part, own in zip(x.split(list(sizes)), w, strict=True)])


def _outer(x: Tensor, y: Tensor, sizes: Sequence[int], ends: Tensor) -> Tensor:
    """x_iᵀ y_i of each run [runs, d, e]: x [tokens, d], y [tokens, e]."""
    if _grouped(x, y):
        return grouped_mm(x.contiguous().mT, y.contiguous(), offs=ends)
    pairs = zip(x.split(list(sizes)), y.split(list(sizes)), strict=True)
    return torch.stack([one.mT @ two for one, two in pairs])
