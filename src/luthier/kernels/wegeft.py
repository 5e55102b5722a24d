"""WeGeFT's adapted layer in one autograd node: the edited input lives only until the layer has read it."""

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
    """y = x̂ Wᵀ + b, x̂ = x + s (drop(x) ψᵀ) φᵀ, x [..., d_in]."""
    return linears([layer], x)[0]


def linears(layers: Sequence[Layer[Any]], x: Tensor) -> list[Tensor]:
    """Returns the same for layers that read the same x, at one rate of dropout."""
    rate = layers[0].form.dropout
    read = dropped(x, rate, layers[0].weight)
    given, mask = (None, None) if read is None else (read.x, read.mask)
    scales = [layer.form.scale / keep(rate) for layer in layers]
    tensors = [t for layer in layers for t in (layer.weight, layer.bias, layer.p["psi"], layer.p["phi"])]
    return list(_WeGeFT.apply(x, given, mask, scales, *tensors)[: len(layers)])


def difference(form: Any, p: Params, start: Params) -> dict[str, Tensor]:
    """φ ψ - φ₀ ψ₀ = [φ - φ₀, φ₀] [ψ; ψ - ψ₀], as LoRA's."""
    phi, psi = p["phi"], p["psi"]
    return {"phi": torch.cat([phi - start["phi"], start["phi"]], 1), "psi": torch.cat([psi, psi - start["psi"]])}


def decoder(form: Any, p: Params, layer: Frozen) -> Run:
    """x -> layer(x + s (x ψᵀ) φᵀ)."""
    phi, psi, s = p["phi"], p["psi"], form.scale

    def run(x: Tensor) -> Tensor:
        edited = x.clone(memory_format=torch.contiguous_format)
        added(edited, x, psi, phi, s)
        return layer(edited)

    return run


def mixed(pairs: Sequence[tuple[Any, Params]], layer: Frozen) -> AssignRows:
    """The same with the factors of the pair rows[i] for row i of x [rows, ..., d_in]; None leaves a row as it is."""
    factors = Rows([p["psi"] for _, p in pairs], [form.scale * p["phi"].mT for form, p in pairs])

    def assign_rows(rows: RowAdapters) -> Run:
        add = factors.adder(rows)

        def run(x: Tensor) -> Tensor:
            edited = x.clone(memory_format=torch.contiguous_format)
            add(edited, x)
            return layer(edited)

        return run

    return assign_rows


def shared(parts: Sequence[Part[Any]], layer: Frozen, x: Tensor) -> Tensor:
    """The layer in training, where x [..., d_in] holds runs of tokens of several adapters."""
    added_term, own = term(parts, [part.form.scale if part.form is not None else 0.0 for part in parts], x)
    flat = x.reshape(-1, x.shape[-1])
    edited = added_term.added(flat.clone(), flat, [part.p["psi"] for part in own], [part.p["phi"] for part in own])
    return layer(edited).view(*x.shape[:-1], -1)


class _WeGeFT(torch.autograd.Function):
    """As LoRA's: between ψ and φ is h = ψ xᵀ [ranks, tokens]; an edited input lives until its layer has read it."""

    @staticmethod
    def forward(x: Tensor, read: Tensor | None, mask: Tensor | None, scales: list[float], *tensors: Tensor):
        """(y of each layer [..., d_out], h, ψ, and s φᵀ of each); `read` is what ψ reads: x with dropout, or None."""
        weights, biases, downs, ups = (tensors[place::4] for place in range(4))
        flat, psi = x.reshape(-1, x.shape[-1]), together(downs, x.dtype)
        ups = scaled(ups, scales, x.dtype)
        h = psi @ (flat if read is None else read.reshape(flat.shape)).mT
        ys, parts = [], h.split([len(up) for up in ups])
        for weight, bias, up, part in zip(weights, biases, ups, parts, strict=True):
            edited = torch.addmm(flat, part.mT, up)
            ys.append(functional.linear(edited, weight, bias).view(*x.shape[:-1], -1))
        return *ys, h, psi, *ups

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
        mask, h, psi, *rest = ctx.saved_tensors
        ups, weights, parts = rest[: ctx.count], rest[ctx.count : 2 * ctx.count], rest[2 * ctx.count :]
        pairs = zip(dys[: ctx.count], weights, strict=True)
        dedited = [functional.linear(dy.reshape(-1, dy.shape[-1]), w.mT) for dy, w in pairs]  # dy W, as forwards
        dh, dpsis, dphis = factor_gradients(ups, dedited, h, lambda left: ctx.times(left, mask, *parts), ctx.scales)
        dx = through(dedited, dh, psi, mask).view((*dys[0].shape[:-1], -1)) if ctx.needs_input_grad[0] else None
        pairs = zip(dpsis, dphis, strict=True)
        return dx, None, None, None, *(g for dpsi, dphi in pairs for g in (None, None, dpsi, dphi))
