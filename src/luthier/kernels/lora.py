"""LoRA's adapted layers in one autograd node: no second output, no sum of input gradients; one pass over x for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luthier.core.contracts.form import Params
from luthier.core.contracts.kernel import AssignRows, Frozen, Layer, Part, RowAdapters, Run
from luthier.kernels._dropout import dropped, keep
from luthier.kernels._ranks import factor_gradients, scaled, through, together
from luthier.kernels._recompute import saved_for_backward
from luthier.kernels._rows import Rows, added
from luthier.kernels._runs import term


def linear(layer: Layer[Any], x: Tensor) -> Tensor:
    """y = x Wᵀ + b + s (drop(x) Aᵀ) Bᵀ, x [..., d_in]."""
    return linears([layer], x)[0]


def linears(layers: Sequence[Layer[Any]], x: Tensor) -> list[Tensor]:
    """Returns the same for layers that read the same x, at one rate of dropout."""
    rate = layers[0].form.dropout
    read = dropped(x, rate, layers[0].weight)
    given, mask = (None, None) if read is None else (read.x, read.mask)
    scales = [layer.form.scale / keep(rate) for layer in layers]
    tensors = [t for layer in layers for t in (layer.weight, layer.bias, layer.p["A"], layer.p["B"])]
    return list(_LoRA.apply(x, given, mask, scales, *tensors)[: len(layers)])


def difference(form: Any, p: Params, start: Params) -> dict[str, Tensor]:
    """B A - B₀ A₀ = [B - B₀, B₀] [A; A - A₀]: exactly 0 at the start, in one pass over x and y."""
    a, b = p["A"], p["B"]
    return {"A": torch.cat([a, a - start["A"]]), "B": torch.cat([b - start["B"], start["B"]], 1)}


def decoder(form: Any, p: Params, layer: Frozen) -> Run:
    """x -> layer(x) + s (x Aᵀ) Bᵀ."""
    a, b, s = p["A"], p["B"], form.scale

    def run(x: Tensor) -> Tensor:
        y = layer(x)
        added(y, x, a, b, s)
        return y

    return run


def mixed(pairs: Sequence[tuple[Any, Params]], layer: Frozen) -> AssignRows:
    """The same with the factors of the pair rows[i] for row i of x [rows, ..., d_in]; None leaves a row as it is."""
    factors = Rows([p["A"] for _, p in pairs], [form.scale * p["B"].mT for form, p in pairs])

    def assign_rows(rows: RowAdapters) -> Run:
        add = factors.adder(rows)

        def run(x: Tensor) -> Tensor:
            y = layer(x)
            add(y, x)
            return y

        return run

    return assign_rows


def shared(parts: Sequence[Part[Any]], layer: Frozen, x: Tensor) -> Tensor:
    """The layer in training, where x [..., d_in] holds runs of tokens of several adapters."""
    added_term, own = term(parts, [part.form.scale if part.form is not None else 0.0 for part in parts], x)
    flat = x.reshape(-1, x.shape[-1])
    y = added_term.added(layer(flat), flat, [part.p["A"] for part in own], [part.p["B"] for part in own])
    return y.view(*x.shape[:-1], -1)


class _LoRA(torch.autograd.Function):
    """Between A and B is h = A xᵀ [ranks, tokens], with the ranks of all layers above each other."""

    @staticmethod
    def forward(x: Tensor, read: Tensor | None, mask: Tensor | None, scales: list[float], *tensors: Tensor):
        """(y of each layer [..., d_out], h, A, and s Bᵀ of each); `read` is what A reads: x with dropout, or None."""
        weights, biases, downs, ups = (tensors[place::4] for place in range(4))
        a, ups = together(downs, x.dtype), scaled(ups, scales, x.dtype)
        h = a @ (x if read is None else read).reshape(-1, x.shape[-1]).mT
        ys, parts = [], h.split([len(up) for up in ups])
        for weight, bias, up, part in zip(weights, biases, ups, parts, strict=True):
            y = functional.linear(x, weight, bias)
            y.view(-1, y.shape[-1]).addmm_(part.mT, up)
            ys.append(y)
        return *ys, h, a, *ups

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, read, mask, ctx.scales, *tensors = inputs
        ctx.count = len(ctx.scales)
        ctx.mark_non_differentiable(*output[ctx.count :])
        ctx.times, parts = saved_for_backward(x, read)
        ctx.save_for_backward(mask, *output[ctx.count :], *tensors[::4], *parts)

    @staticmethod
    @once_differentiable  # for second derivatives there is `luthier.core.contracts.kernel.reference_implementation`
    def backward(ctx: Any, *dys: Tensor):
        mask, h, a, *rest = ctx.saved_tensors
        ups, weights, parts = rest[: ctx.count], rest[ctx.count : 2 * ctx.count], rest[2 * ctx.count :]
        flat = [dy.reshape(-1, dy.shape[-1]) for dy in dys[: ctx.count]]
        dh, das, dbs = factor_gradients(ups, flat, h, lambda left: ctx.times(left, mask, *parts), ctx.scales)
        dx = None
        if ctx.needs_input_grad[0]:
            # dy W, by the library of the forward pass
            gradients = [functional.linear(dy, weight.mT) for dy, weight in zip(flat, weights, strict=True)]
            dx = through(gradients, dh, a, mask).view((*dys[0].shape[:-1], -1))
        return dx, None, None, None, *(g for da, db in zip(das, dbs, strict=True) for g in (None, None, da, db))
