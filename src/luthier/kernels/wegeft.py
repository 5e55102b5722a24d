"""WeGeFT's adapted layer in one autograd node: the edited input lives only until the layer has read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from luthier.core.fast import Run
from luthier.core.form import Params
from luthier.forms.wegeft import WeGeFT
from luthier.kernels._dropout import draw_mask, keep, masked
from luthier.kernels._rows import added, added_rows, of_rows


def linear(form: WeGeFT, p: Params, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x̂ Wᵀ + b, x̂ = x + s (drop(x) ψᵀ) φᵀ, x [..., d_in]."""
    mask = draw_mask(x, form.dropout)
    s = form.scale / keep(form.dropout)
    return _WeGeFT.apply(x, weight, bias, p["phi"], p["psi"], s, mask)[0]  # type: ignore[index]


def decoder(form: WeGeFT, p: Params, layer: Run) -> Run:
    """x -> layer(x + s (x ψᵀ) φᵀ)."""
    phi, psi, s = p["phi"], p["psi"], form.scale

    def run(x: Tensor) -> Tensor:
        edited = x.clone(memory_format=torch.contiguous_format)
        added(edited.view(-1, x.shape[-1]), x.reshape(-1, x.shape[-1]), psi, phi, s)
        return layer(edited)

    return run


def mixed(pairs: Sequence[tuple[WeGeFT, Params]], rows: Sequence[int | None], layer: Run) -> Run:
    """The same with the factors of the pair rows[i] for row i of x [rows, ..., d_in]; None leaves a row as it is."""
    psi = of_rows([p["psi"] for _, p in pairs], rows)
    phi = of_rows([form.scale * p["phi"].mT for form, p in pairs], rows)

    def run(x: Tensor) -> Tensor:
        edited = x.clone(memory_format=torch.contiguous_format)
        split = (len(psi), -1, x.shape[-1])
        added_rows(edited.view(split), x.reshape(split), psi, phi)
        return layer(edited)

    return run


class _WeGeFT(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, phi: Tensor, psi: Tensor, s: float, mask: Tensor | None
    ):
        flat = x.reshape(-1, x.shape[-1])
        inner = masked(x, mask).view(flat.shape) @ psi.mT
        edited = torch.addmm(flat, inner, phi.mT, alpha=s)
        return functional.linear(edited, weight, bias).view(*x.shape[:-1], -1), inner

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, phi, psi, ctx.s, mask = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, phi, psi, output[1], mask)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor):
        x, weight, phi, psi, inner, mask = ctx.saved_tensors
        dedited = dy.reshape(-1, dy.shape[-1]) @ weight
        dinner = (dedited @ phi) * ctx.s
        dphi = (inner.mT @ dedited).mT * ctx.s
        dpsi = dinner.mT @ masked(x, mask).reshape(-1, x.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (
                dedited.addmm_(dinner, psi) if mask is None else dedited.add_((dinner @ psi) * mask.view(dedited.shape))
            )
            dx = dx.view(x.shape)
        return dx, None, None, dphi, dpsi, None, None
