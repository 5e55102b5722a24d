"""LiST's weights of rows: how far a step on each of them would lower the loss of labelled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from luthier.core.contracts.kernel import reference_implementation
from luthier.core.sites.probe import eval_mode

Tensors = Mapping[str, Tensor]
CLOSE = 1e-3
"""The largest relative difference from an ordinary backward pass at which the forward-mode one is believed."""


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without what forward-mode differentiation cannot look into."""
    with eval_mode(model), torch.enable_grad(), reference_implementation(), sdpa_kernel(SDPBackend.MATH):
        yield


def row_weights(losses: Callable[[Tensors], Tensor], labelled: Callable[[Tensors], Tensor], params: Tensors) -> Tensor:
    """Returns w = relu(u) / Σ relu(u), u_i = -∂L(θ - η Σ_j ε_j ∇l_j(θ)) / ∂ε_i at ε = 0, for the l of each row; [rows].

    u_i = η <∇L(θ), ∇l_i(θ)>, whose factor η drops out. `losses` gives the l [rows] and `labelled` gives L, both at an
    adapter's tensors `params`. All weights are 0 where a step on no row would lower L. (The authors add 1e-6 to the
    sum, which at their rates makes weights depend on η.)
    """
    u = products(losses, gradient(labelled, params), params).clamp(min=0)
    total = u.sum()
    return u / total if total > 0 else torch.zeros_like(u)


def products(losses: Callable[[Tensors], Tensor], direction: Tensors, params: Tensors) -> Tensor:
    """Returns <∇l_i, direction> of each row, [rows].

    By one forward-mode pass, whose sum an ordinary backward pass has to confirm, else one backward pass per row.
    """
    held = {key: p.detach() for key, p in params.items()}
    total = gradient(lambda at: losses(at).sum(), params)
    wanted = sum((total[key] * direction[key]).sum() for key in total)
    try:
        found = jvp(losses, (held,), ({key: direction[key].to(p) for key, p in held.items()},))[1]
    except (RuntimeError, NotImplementedError, TypeError):
        return _one_by_one(losses, direction, params)
    scale = sum(total[key].norm() * direction[key].norm() for key in total)
    if abs(float(found.sum()) - float(wanted)) <= CLOSE * float(scale):
        return found.detach()
    return _one_by_one(losses, direction, params)


def _one_by_one(losses: Callable[[Tensors], Tensor], direction: Tensors, params: Tensors) -> Tensor:
    leaves = {key: p.detach().requires_grad_() for key, p in params.items()}
    rows = losses(leaves)
    found = []
    for row in rows:
        slopes = torch.autograd.grad(row, list(leaves.values()), retain_graph=True, allow_unused=True)
        pairs = zip(slopes, leaves, strict=True)
        found.append(sum(((g * direction[key]).sum() for g, key in pairs if g is not None), rows.new_zeros(())))
    return torch.stack(found).detach()


def gradient(value: Callable[[Tensors], Tensor], params: Tensors) -> dict[str, Tensor]:
    """Returns the gradient of a number by each tensor, zeros where it does not act."""
    leaves = {key: p.detach().requires_grad_() for key, p in params.items()}
    found = torch.autograd.grad(value(leaves), list(leaves.values()), allow_unused=True)
    return {key: torch.zeros_like(p) if g is None else g for (key, p), g in zip(leaves.items(), found, strict=True)}
