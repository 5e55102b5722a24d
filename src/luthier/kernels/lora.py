"""LoRA's adapted layer in one autograd node: no second output, no sum of two input gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luthier.core.fast import Run
from luthier.core.form import Params
from luthier.forms.lora import LoRA
from luthier.kernels._dropout import draw_mask, keep, masked
from luthier.kernels._rows import added, added_rows, of_rows


def linear(form: LoRA, p: Params, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ, x [..., d_in]."""
    mask = draw_mask(x, form.dropout)
    return _LoRA.apply(x, weight, bias, p["A"], p["B"], form.scale / keep(form.dropout), mask)[0]  # type: ignore[index]


def decoder(form: LoRA, p: Params, layer: Run) -> Run:
    """x -> layer(x) + s (x Aᵀ) Bᵀ."""
    a, b, s = p["A"], p["B"], form.scale

    def run(x: Tensor) -> Tensor:
        y = layer(x)
        added(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), a, b, s)
        return y

    return run


def mixed(pairs: Sequence[tuple[LoRA, Params]], rows: Sequence[int | None], layer: Run) -> Run:
    """The same with the factors of the pair rows[i] for row i of x [rows, ..., d_in]; None leaves a row as it is."""
    a = of_rows([p["A"] for _, p in pairs], rows)
    b = of_rows([form.scale * p["B"].mT for form, p in pairs], rows)

    def run(x: Tensor) -> Tensor:
        y = layer(x)
        added_rows(y.view(len(a), -1, y.shape[-1]), x.reshape(len(a), -1, x.shape[-1]), a, b)
        return y

    return run


class _LoRA(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float, mask: Tensor | None):
        y = functional.linear(x, weight, bias)
        inner = masked(x, mask).reshape(-1, x.shape[-1]) @ a.mT
        y.view(-1, y.shape[-1]).addmm_(inner, b.mT, alpha=s)
        return y, inner

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, a, b, ctx.s, mask = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, a, b, output[1], mask)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor):
        x, weight, a, b, inner, mask = ctx.saved_tensors
        dy = dy.reshape(-1, dy.shape[-1])
        dinner = (dy @ b) * ctx.s
        db = (inner.mT @ dy).mT * ctx.s  # in memory as B itself, the long side last
        da = dinner.mT @ masked(x, mask).reshape(-1, x.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            dx = dx.addmm_(dinner, a) if mask is None else dx.add_((dinner @ a) * mask.view(dx.shape))
            dx = dx.view(x.shape)
        return dx, None, None, da, db, None, None
