"""DoRA's adapted layer without its weight: rows are scaled after the product, their norms come from small factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luthier.core.fast import Frozen, Layer, Run
from luthier.core.form import Params
from luthier.forms.dora import DoRA
from luthier.kernels._rows import Rows, added

KEEPS = True


def linear(layer: Layer[DoRA], x: Tensor) -> Tensor:
    """y = c ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + b, c = m / ‖W + s B A‖ [d_out], x [..., d_in]."""
    p, weight, s = layer.cast(x.dtype), layer.weight, layer.form.scale
    c = p["m"] / _norms(weight, p["A"].detach(), p["B"].detach(), s).to(x.dtype)
    return _Product.apply(x, weight, layer.bias, p["A"], p["B"], c, s)[0]  # type: ignore[index]


def decoder(form: DoRA, p: Params, layer: Frozen) -> Run:
    """x -> c ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + b; c, which takes a pass over W, is kept."""
    a, b, s = p["A"], p["B"], form.scale
    c = _scales(form, p, layer.weight).to(layer.weight.dtype)

    def run(x: Tensor) -> Tensor:
        y = functional.linear(x, layer.weight)
        added(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), a, b, s)
        return y.mul_(c) if layer.bias is None else y.mul_(c).add_(layer.bias)

    return run


def mixed(pairs: Sequence[tuple[DoRA, Params]], rows: Sequence[int | None], layer: Frozen) -> Run:
    """The same with the factors and the scales of the pair rows[i] for row i of x [rows, ..., d_in]; None leaves a
    row as it is."""
    factors = Rows([p["A"] for _, p in pairs], [form.scale * p["B"].mT for form, p in pairs], rows)
    scales = [_scales(form, p, layer.weight).to(layer.weight.dtype) for form, p in pairs]
    ones = torch.ones_like(scales[0])
    c = torch.stack([ones if row is None else scales[row] for row in rows])[:, None]

    def run(x: Tensor) -> Tensor:
        y = functional.linear(x, layer.weight)
        factors.add(y, x)
        y.view(len(c), -1, y.shape[-1]).mul_(c)
        return y if layer.bias is None else y.add_(layer.bias)

    return run


def _scales(form: DoRA, p: Params, w: Tensor) -> Tensor:
    """c, at the precision of the stored parameters."""
    return p["m"] / _norms(w.to(p["A"].dtype), p["A"], p["B"], form.scale).to(p["m"].dtype)


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
