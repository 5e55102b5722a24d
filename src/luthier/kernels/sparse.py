"""A sparse change of a linear layer that keeps no dense weight, and no dense gradient beyond the layer at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luthier.core.contracts.kernel import Layer


def linear(layer: Layer[Any], x: Tensor) -> Tensor:
    """Computes y = x (W + S)ᵀ + b, x [..., d_in]."""
    values = layer.p["values"].to(x.dtype)
    y: Any = _Sparse.apply(x, layer.weight, layer.bias, layer.p["index"], values)
    return y


def _moved(weight: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """W + S, dense; it lives as long as one product."""
    flat = torch.zeros_like(weight).view(-1).scatter_add_(0, index.long(), values)
    return weight + flat.view_as(weight)


class _Sparse(torch.autograd.Function):
    """Both passes form W + S anew: what is kept between them is x and the entries."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, values: Tensor):  # pyright: ignore
        """y [..., d_out]."""
        return functional.linear(x, _moved(weight, index, values), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _, index, values = inputs
        ctx.save_for_backward(x, weight, index, values)

    @staticmethod
    @once_differentiable  # for second derivatives there is `luthier.core.contracts.kernel.reference_implementation`
    def backward(ctx: Any, dy: Tensor):  # pyright: ignore
        """dx = dy (W + S), and the entries of dyᵀ x that train."""
        x, weight, index, values = ctx.saved_tensors
        dx = functional.linear(dy, _moved(weight, index, values).mT) if ctx.needs_input_grad[0] else None
        dvalues = None
        if ctx.needs_input_grad[4]:
            whole = dy.reshape(-1, dy.shape[-1]).mT @ x.reshape(-1, x.shape[-1])
            dvalues = whole.view(-1)[index.long()]
        return dx, None, None, None, dvalues
