"""LoRA's adapted layer in one autograd node: no second output, no sum of two input gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luthier.core.fast import Frozen, Run
from luthier.core.form import Params
from luthier.forms.lora import LoRA
from luthier.kernels._dropout import dropped, keep
from luthier.kernels._rows import Rows, added


def linear(form: LoRA, p: Params, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ, x [..., d_in]."""
    read = dropped(x, form.dropout, weight)
    s = form.scale / keep(form.dropout)
    given, mask = (None, None) if read is None else (read.x, read.mask)
    return _LoRA.apply(x, weight, bias, p["A"], p["B"], s, given, mask)[0]  # type: ignore[index]


def difference(form: LoRA, p: Params, start: Params) -> dict[str, Tensor]:
    """B A - B₀ A₀ = [B - B₀, B₀] [A; A - A₀]: exactly 0 at the start, in one pass over x and y."""
    a, b = p["A"], p["B"]
    return {"A": torch.cat([a, a - start["A"]]), "B": torch.cat([b - start["B"], start["B"]], 1)}


def decoder(form: LoRA, p: Params, layer: Frozen) -> Run:
    """x -> layer(x) + s (x Aᵀ) Bᵀ."""
    a, b, s = p["A"], p["B"], form.scale

    def run(x: Tensor) -> Tensor:
        y = layer(x)
        added(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), a, b, s)
        return y

    return run


def mixed(pairs: Sequence[tuple[LoRA, Params]], rows: Sequence[int | None], layer: Frozen) -> Run:
    """The same with the factors of the pair rows[i] for row i of x [rows, ..., d_in]; None leaves a row as it is."""
    factors = Rows([p["A"] for _, p in pairs], [form.scale * p["B"].mT for form, p in pairs], rows)

    def run(x: Tensor) -> Tensor:
        y = layer(x)
        factors.add(y, x)
        return y

    return run


class _LoRA(torch.autograd.Function):
    """Thin factors keep their long side last in memory, where matrix products are up to three times as fast."""

    @staticmethod
    def forward(x, weight, bias, a, b, s: float, read: Tensor | None, mask: Tensor | None):  # pyright: ignore
        """y [..., d_out]; `read` is what A reads: x with dropout, or None for x itself."""
        y = functional.linear(x, weight, bias)
        inner = (x if read is None else read).reshape(-1, x.shape[-1]) @ a.mT
        up = b.mT.contiguous()
        y.view(-1, y.shape[-1]).addmm_(inner, up, alpha=s)
        return y, inner, up

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, a, _, ctx.s, read, mask = inputs
        ctx.shape = x.shape
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x if read is None else read, weight, a, *output[1:], mask)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor):
        read, weight, a, inner, up, mask = ctx.saved_tensors
        dy = dy.reshape(-1, dy.shape[-1])
        dinner = (dy @ up.mT) * ctx.s
        db = (inner.mT @ dy).mT * ctx.s
        da = dinner.mT @ read.reshape(-1, read.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = functional.linear(dy, weight.mT)  # dy W, by the library of the forward pass
            dx = dx.addmm_(dinner, a) if mask is None else dx.add_((dinner @ a).mul_(mask.view(dx.shape)))
            dx = dx.view(ctx.shape)
        return dx, None, None, da, db, None, None, None
