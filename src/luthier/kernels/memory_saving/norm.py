"""RMSNorm with frozen weights: of a row all that is kept is x, which autograd keeps in float32, and one number.

y = w ∘ x / √(mean x² + ε), x [..., d]; computed in float32, rounded to the dtype of x before w, as transformers does.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels._recompute import mark_recomputable


def reference(self, hidden_states):
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
    return self.weight * hidden_states.to(input_dtype)


def memory_saving(module: Any, x: Tensor) -> Tensor | None:
    """Computes `reference`, bit for bit; None where the weight is trained, sharded or of another dtype."""
    weight = module.weight
    if not x.requires_grad or weight.requires_grad or weight.dtype is not x.dtype:
        return None
    if type(weight) not in (nn.Parameter, Tensor):
        return None
    made: Any = _Norm.apply(x, weight, module.variance_epsilon)
    y, r = made
    return mark_recomputable(y, _normed, x, weight, r, times=_times)


def _normed(x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
    return (x.float() * r).to(x.dtype).mul_(weight)


def _times(left: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
    """left @ y = ((left ∘ r) @ x) ∘ w: y need not be made."""
    return ((left * r.view(1, -1)).to(x.dtype) @ x.reshape(-1, x.shape[-1])) * weight


class _Norm(torch.autograd.Function):
    """dx = r (g - x r² mean(g ∘ x)), g = w ∘ dy, r = 1 / √(mean x² + ε)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, epsilon: float):
        """(y, r [..., 1])."""
        r = x.float().square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        return _normed(x, weight, r), r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, ctx.epsilon = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any):
        x, weight, r = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives are wanted
            y = reference(SimpleNamespace(weight=weight, variance_epsilon=ctx.epsilon), x)
            return torch.autograd.grad(y, x, dy, create_graph=True)[0], None, None
        wide, g = x.float(), (dy * weight).float()
        pull = torch.linalg.vecdot(g, wide)[..., None].mul_(r.pow(3)).div_(-x.shape[-1])
        return g.mul_(r).addcmul_(wide, pull).to(x.dtype), None, None
