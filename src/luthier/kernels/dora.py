"""DoRA's adapted layer without its weight: rows are scaled after the product, their norms come from small factors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luthier.core.contracts.form import Params
from luthier.core.contracts.kernel import AssignRows, Frozen, Layer, Part, RowAdapters, Run
from luthier.core.numerics.matrix import gain
from luthier.kernels._ranks import factor_gradients, scaled, through, together
from luthier.kernels._recompute import saved_for_backward
from luthier.kernels._rows import Rows, added
from luthier.kernels._runs import term

KEEPS = True


def linear(layer: Layer[Any], x: Tensor) -> Tensor:
    """y = c ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + b, c = m / ‖W + s B A‖ [d_out], x [..., d_in]."""
    return linears([layer], x)[0]


def linears(layers: Sequence[Layer[Any]], x: Tensor) -> list[Tensor]:
    """Returns the same for layers that read the same x."""
    scales = [layer.form.scale for layer in layers]
    tensors = []
    for layer, s in zip(layers, scales, strict=True):
        p = layer.cast(x.dtype)
        c = gain(p["m"], _norms(layer.weight, p["A"].detach(), p["B"].detach(), s).to(x.dtype))
        tensors += [layer.weight, layer.bias, layer.p["A"], layer.p["B"], c]
    return list(_DoRA.apply(x, scales, *tensors)[: len(layers)])


def decoder(form: Any, p: Params, layer: Frozen) -> Run:
    """x -> c ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + b; c, which takes a pass over W, is kept."""
    a, b, s = p["A"], p["B"], form.scale
    c = _scales(form, p, layer.weight).to(layer.weight.dtype)

    def run(x: Tensor) -> Tensor:
        y = functional.linear(x, layer.weight)
        added(y, x, a, b, s)
        return y.mul_(c) if layer.bias is None else y.mul_(c).add_(layer.bias)

    return run


def mixed(pairs: Sequence[tuple[Any, Params]], layer: Frozen) -> AssignRows:
    """The same with the factors and the scales of the pair rows[i] for row i of x [rows, ..., d_in]; None leaves a
    row as it is."""
    factors = Rows([p["A"] for _, p in pairs], [form.scale * p["B"].mT for form, p in pairs])
    scales = [_scales(form, p, layer.weight).to(layer.weight.dtype) for form, p in pairs]
    ones = torch.ones_like(scales[0])

    def assign_rows(rows: RowAdapters) -> Run:
        add = factors.adder(rows)
        c = torch.stack([ones if row is None else scales[row] for row in rows])[:, None]

        def run(x: Tensor) -> Tensor:
            y = functional.linear(x, layer.weight)
            add(y, x)
            y.view(len(c), -1, y.shape[-1]).mul_(c)
            return y if layer.bias is None else y.add_(layer.bias)

        return run

    return assign_rows


def shared(parts: Sequence[Part[Any]], layer: Frozen, x: Tensor) -> Tensor:
    """The layer in training, where x [..., d_in] holds runs of tokens of several adapters."""
    added_term, own = term(parts, [part.form.scale if part.form is not None else 0.0 for part in parts], x)
    flat, cs = x.reshape(-1, x.shape[-1]), [x.new_ones(len(layer.weight))]
    for part in reversed(own):
        assert part.form is not None
        p = {key: tensor.to(x.dtype) for key, tensor in part.p.items()}
        norms = _norms(layer.weight, p["A"].detach(), p["B"].detach(), part.form.scale)
        cs.insert(0, gain(p["m"], norms.to(x.dtype)))
    y = added_term.added(
        functional.linear(flat, layer.weight), flat, [part.p["A"] for part in own], [part.p["B"] for part in own]
    )
    runs = torch.tensor(added_term.factors, device=x.device)
    tokens = runs.repeat_interleave(torch.tensor(added_term.sizes, device=x.device))
    y = y * torch.stack(cs)[tokens]
    return (y if layer.bias is None else y + layer.bias).view(*x.shape[:-1], -1)


def _scales(form: Any, p: Params, w: Tensor) -> Tensor:
    """c, at the precision of the stored parameters."""
    return gain(p["m"], _norms(w.to(p["A"].dtype), p["A"], p["B"], form.scale).to(p["m"].dtype))


def _norms(w: Tensor, a: Tensor, b: Tensor, s: float) -> Tensor:
    """‖W + s B A‖ of each row, from ‖W‖² + 2 s ⟨W Aᵀ, B⟩ + s² ⟨B A Aᵀ, B⟩; a constant in the gradient."""
    wide = torch.promote_types(w.dtype, torch.float32)
    squares = torch.linalg.vector_norm(w, dim=1, dtype=wide).square()
    cross, gram, b = (a @ w.mT).mT.to(wide), (a @ a.mT).to(wide), b.to(wide)
    return (squares + 2 * s * (cross * b).sum(1) + s**2 * ((b @ gram) * b).sum(1)).clamp(min=0).sqrt()


class _DoRA(torch.autograd.Function):
    """As LoRA's. The gradient of c is Σ dy ∘ z = Σ dy ∘ (c z) / c over the tokens, z the product before it is scaled.
    Without a bias c z is y, which most of what follows a layer keeps as well; behind a bias it would be blurred."""

    @staticmethod
    def forward(x: Tensor, scales: list[float], *tensors: Tensor):
        """(y of each layer [..., d_out], c z [tokens, d_out] of each with a bias, h, A, and s Bᵀ of each)."""
        weights, biases, downs, ups, cs = (tensors[place::5] for place in range(5))
        a, ups = together(downs, x.dtype), scaled(ups, scales, x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        h = a @ flat.mT
        ys, bare, parts = [], [], h.split([len(up) for up in ups])
        for weight, bias, up, part, c in zip(weights, biases, ups, parts, cs, strict=True):
            y = functional.linear(flat, weight).addmm_(part.mT, up).mul_(_divisor(c))
            if bias is not None:
                bare.append(y)
                y = y + bias
            ys.append(y.view(*x.shape[:-1], -1))
        return *ys, *bare, h, a, *ups

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, ctx.scales, *tensors = inputs
        n = ctx.count = len(ctx.scales)
        ctx.mark_non_differentiable(*output[n:])
        ctx.times, parts = saved_for_backward(x, None)
        bare, rest = iter(output[n : -n - 2]), output[-n - 2 :]
        products = [y if bias is None else next(bare) for y, bias in zip(output, tensors[1::5], strict=False)]
        ctx.save_for_backward(*tensors[::5], *tensors[4::5], *products, *rest, *parts)

    @staticmethod
    @once_differentiable  # for second derivatives there is `luthier.core.contracts.kernel.reference_implementation`
    def backward(ctx: Any, *dys: Tensor):
        saved = iter(ctx.saved_tensors)
        weights, cs, products = ([*islice(saved, ctx.count)] for _ in range(3))
        h, a, ups = next(saved), next(saved), [*islice(saved, ctx.count)]
        parts = [*saved]
        dcs, dzs = [], []
        for dy, product, c in zip(dys[: ctx.count], products, cs, strict=True):
            dy, c = dy.reshape(-1, dy.shape[-1]), _divisor(c)
            room = dy * product.view_as(dy)
            dcs.append(room.sum(0) / c)
            dzs.append(torch.mul(dy, c, out=room))
        dh, das, dbs = factor_gradients(ups, dzs, h, lambda left: ctx.times(left, None, *parts), ctx.scales)
        dx = None
        if ctx.needs_input_grad[0]:
            gradients = [functional.linear(dz, weight.mT) for dz, weight in zip(dzs, weights, strict=True)]
            dx = through(gradients, dh, a, None).view(*dys[0].shape[:-1], -1)
        return dx, None, *(g for own in zip(das, dbs, dcs, strict=True) for g in (None, None, *own))


def _divisor(c: Tensor) -> Tensor:
    """c, with next to nothing in place of 0, by which nothing could be divided."""
    return c.masked_fill(c == 0, max(1e-30, torch.finfo(c.dtype).tiny))
