"""DoRA's adapted layer without its weight: rows are scaled after the product, their norms come from small factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luthier.core.form import Params
from luthier.forms.dora import DoRA


def linear(form: DoRA, p: Params, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = c ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + b, c = m / ‖W + s B A‖ [d_out], x [..., d_in]."""
    a, b, s = p["A"], p["B"], form.scale
    c = p["m"] / _norms(weight, a.detach(), b.detach(), s).to(x.dtype)
    return _Product.apply(x, weight, bias, a, b, c, s)[0]  # type: ignore[index]


def _norms(w: Tensor, a: Tensor, b: Tensor, s: float) -> Tensor:
    """‖W + s B A‖ of each row, from ‖W‖² + 2 s ⟨W Aᵀ, B⟩ + s² ⟨B A Aᵀ, B⟩; a constant in the gradient."""
    wide = torch.promote_types(w.dtype, torch.float32)
    squares = torch.linalg.vector_norm(w, dim=1, dtype=wide).square()
    cross, gram, b = (w @ a.mT).to(wide), (a @ a.mT).to(wide), b.to(wide)
    return (squares + 2 * s * (cross * b).sum(1) + s**2 * ((b @ gram) * b).sum(1)).clamp(min=0).sqrt()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, c: Tensor, s: float):
        flat = x.reshape(-1, x.shape[-1])
        inner = flat @ a.mT
        z = functional.linear(flat, weight).addmm_(inner, b.mT, alpha=s)
        y = z * c if bias is None else torch.addcmul(bias, z, c)
        return y.view(*x.shape[:-1], -1), inner, z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, a, b, c, ctx.s = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, a, b, c, *output[1:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor):
        x, weight, a, b, c, inner, z = ctx.saved_tensors
        dy = dy.reshape(-1, dy.shape[-1])
        dc = (dy * z).sum(0)
        dz = dy * c
        dinner = (dz @ b) * ctx.s
        db = (inner.mT @ dz).mT * ctx.s
        da = dinner.mT @ x.reshape(-1, x.shape[-1])
        dx = functional.linear(dz, weight.mT).addmm_(dinner, a).view(x.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, da, db, dc, None
