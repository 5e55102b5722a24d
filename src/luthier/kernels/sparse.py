"""A sparse change of a linear layer that keeps no dense weight, and no dense gradient beyond the layer at hand."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from luthier.core.contracts.kernel import Layer

FEW = 0.1
"""Share of the entries below which the gradient of each is a product of its own, for less than the whole takes."""


def linear(layer: Layer[Any], x: Tensor) -> Tensor:
    """Computes y = x (W + S)ᵀ + b, x [..., d_in]."""
    values = layer.p["values"].to(x.dtype)
    y: Any = _Sparse.apply(x, layer.weight, layer.bias, layer.p["index"], values)
    return y


def _moved(weight: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """W + S, dense; it lives as long as one product."""
    moved = weight.clone(memory_format=torch.contiguous_format)
    moved.view(-1).scatter_add_(0, index.long(), values)
    return moved


def _gradients(dy: Tensor, x: Tensor, index: Tensor) -> Tensor:
    """The entries `index` of dyᵀ x, dy [n, d_out] and x [n, d_in]: one by one where they are few, else of the whole."""
    shape = (dy.shape[1], x.shape[1])
    if len(index) < FEW * shape[0] * shape[1] and _by_entries(dy) and bool((index.diff() > 0).all()):
        return _sampled(dy, x, index.long(), shape)
    return (dy.mT @ x).view(-1)[index.long()]


def _by_entries(dy: Tensor) -> bool:
    """Whether torch has fast products of chosen entries here: MKL's on a CPU, outside of a compiled graph."""
    plain = dy.device.type == "cpu" and dy.dtype in (torch.float32, torch.float64)
    return plain and torch.backends.mkl.is_available() and not torch.compiler.is_compiling()


def _sampled(dy: Tensor, x: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    _tell_nothing()
    rows = torch.searchsorted(index, torch.arange(shape[0] + 1) * shape[1])
    zeros = torch.sparse_csr_tensor(rows, index % shape[1], dy.new_zeros(len(index)), shape, check_invariants=False)
    return torch.sparse.sampled_addmm(zeros, dy.mT, x, beta=0.0).values()


@cache
def _tell_nothing() -> None:
    """Lets torch warn once, unheard, that its rows of chosen entries may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.zeros(1, 1).to_sparse_csr()


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
            dvalues = _gradients(dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]), index)
        return dx, None, None, None, dvalues
