"""WeGeFT's adapted layer in one autograd node: the edited input lives only until the layer has read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luthier.core.fast import Frozen, Layer, Run
from luthier.core.form import Params
from luthier.forms.wegeft import WeGeFT
from luthier.kernels._dropout import dropped, keep
from luthier.kernels._rows import Rows, added


def linear(layer: Layer[WeGeFT], x: Tensor) -> Tensor:
    """y = x̂ Wᵀ + b, x̂ = x + s (drop(x) ψᵀ) φᵀ, x [..., d_in]."""
    form, p = layer.form, layer.cast(x.dtype)
    read = dropped(x, form.dropout, layer.weight)
    s = form.scale / keep(form.dropout)
    given, mask = (None, None) if read is None else (read.x, read.mask)
    return _WeGeFT.apply(x, layer.weight, layer.bias, p["phi"], p["psi"], s, given, mask)[0]  # type: ignore[index]


def difference(form: WeGeFT, p: Params, start: Params) -> dict[str, Tensor]:
    """φ ψ - φ₀ ψ₀ = [φ - φ₀, φ₀] [ψ; ψ - ψ₀], as LoRA's."""
    phi, psi = p["phi"], p["psi"]
    return {"phi": torch.cat([phi - start["phi"], start["phi"]], 1), "psi": torch.cat([psi, psi - start["psi"]])}


def decoder(form: WeGeFT, p: Params, layer: Frozen) -> Run:
    """x -> layer(x + s (x ψᵀ) φᵀ)."""
    phi, psi, s = p["phi"], p["psi"], form.scale

    def run(x: Tensor) -> Tensor:
        edited = x.clone(memory_format=torch.contiguous_format)
        added(edited.view(-1, x.shape[-1]), x.reshape(-1, x.shape[-1]), psi, phi, s)
        return layer(edited)

    return run


def mixed(pairs: Sequence[tuple[WeGeFT, Params]], rows: Sequence[int | None], layer: Frozen) -> Run:
    """The same with the factors of the pair rows[i] for row i of x [rows, ..., d_in]; None leaves a row as it is."""
    factors = Rows([p["psi"] for _, p in pairs], [form.scale * p["phi"].mT for form, p in pairs], rows)

    def run(x: Tensor) -> Tensor:
        edited = x.clone(memory_format=torch.contiguous_format)
        factors.add(edited, x)
        return layer(edited)

    return run


class _WeGeFT(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, phi, psi, s: float, read: Tensor | None, mask: Tensor | None):  # pyright: ignore
        """y [..., d_out]; `read` is what ψ reads: x with dropout, or None for x itself."""
        flat = x.reshape(-1, x.shape[-1])
        inner = (x if read is None else read).reshape(flat.shape) @ psi.mT
        edited = torch.addmm(flat, inner, phi.mT, alpha=s)
        return functional.linear(edited, weight, bias).view(*x.shape[:-1], -1), inner

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, phi, psi, ctx.s, read, mask = inputs
        ctx.shape = x.shape
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x if read is None else read, weight, phi, psi, output[1], mask)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor):
        read, weight, phi, psi, inner, mask = ctx.saved_tensors
        dedited = functional.linear(dy.reshape(-1, dy.shape[-1]), weight.mT)  # dy W, as forwards
        dinner = (dedited @ phi) * ctx.s
        dphi = (inner.mT @ dedited).mT * ctx.s
        dpsi = dinner.mT @ read.reshape(-1, read.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dedited  # the other gradients no longer need it
            dx = dx.addmm_(dinner, psi) if mask is None else dx.add_((dinner @ psi).mul_(mask.view(dx.shape)))
            dx = dx.view(ctx.shape)
        return dx, None, None, dphi, dpsi, None, None, None
