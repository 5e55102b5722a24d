"""Cross-entropy a few tokens at a time: their logits are dropped as soon as their gradient is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def summed(
    logits_of: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, size: int, weights: list[Tensor]
) -> Tensor:
    """- sum over n of log softmax(logits_of(rows))[n, targets[n]], `size` rows at a time.

    rows [N, d], targets [N] of indices; `logits_of` maps [n, d] to [n, V], each row for itself. Gradients reach
    `rows` and `weights`, which must name every trained tensor that `logits_of` reads. float32, as transformers'.
    """
    if not torch.is_grad_enabled():
        rows, weights = rows.detach(), []
    total: Any = _Summed.apply(logits_of, targets, size, rows, *weights)
    return total


def each(logits_of: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, size: int) -> Tensor:
    """- log softmax(logits_of(rows))[n, targets[n]], [N], as `summed`; gradients reach `rows` alone."""
    losses: Any = _Each.apply(logits_of, targets, size, rows if torch.is_grad_enabled() else rows.detach())
    return losses


class _Summed(torch.autograd.Function):
    """Takes the gradient of each chunk while its logits exist; the backward pass only scales it."""

    @staticmethod
    def forward(ctx, logits_of, targets, size, *inputs):  # pyright: ignore
        """Loss of all chunks; keeps the gradients of `inputs`, [N, d] and those of the weights."""
        needed = ctx.needs_input_grad[3:]
        total = torch.zeros((), device=targets.device)
        slopes = [torch.zeros_like(x, dtype=_wide(x)) if n else None for x, n in zip(inputs, needed, strict=True)]
        for start in range(0, len(targets), size):
            chosen = slice(start, start + size)
            chunk = inputs[0][chosen].detach().requires_grad_(needed[0])
            losses, found = _chunk(logits_of, targets[chosen], [chunk, *inputs[1:]], needed)
            total += losses.sum()
            for index, slope in enumerate(found):
                if slope is not None:
                    (slopes[index] if index else slopes[0][chosen]).add_(slope)  # pyright: ignore
        ctx.save_for_backward(*(None if s is None else s.to(x.dtype) for s, x in zip(slopes, inputs, strict=True)))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):  # pyright: ignore
        """The kept gradients, scaled."""
        return None, None, None, *(None if s is None else s * slope.to(s.dtype) for s in ctx.saved_tensors)


class _Each(torch.autograd.Function):
    """`_Summed` token by token, of a head that is not trained: the gradient of each token's loss is kept."""

    @staticmethod
    def forward(ctx, logits_of, targets, size, hidden):  # pyright: ignore
        """The loss of each token, [N]; keeps the gradients of `hidden`, [N, d]."""
        needed = ctx.needs_input_grad[3]
        losses, slopes = [hidden.new_empty(0, dtype=_wide(hidden))], [hidden.new_empty(0, hidden.shape[1])]
        for start in range(0, len(targets), size):
            chunk = hidden[start : start + size].detach().requires_grad_(needed)
            found, slope = _chunk(logits_of, targets[start : start + size], [chunk], (needed,))
            losses.append(found)
            slopes += [each for each in slope if each is not None]
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):  # pyright: ignore
        """The kept gradients, each scaled by its own."""
        (kept,) = ctx.saved_tensors
        return None, None, None, kept * slope[:, None].to(kept.dtype)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunk(
    logits_of: Callable, targets: Tensor, inputs: list[Tensor], needed: tuple[bool, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """(the losses of one chunk [n], the gradients of their sum for `inputs`: None where not needed)."""
    with torch.set_grad_enabled(any(needed)):
        logits = logits_of(inputs[0])
    slope = torch.log_softmax(logits.detach().float(), -1)
    losses = -slope.gather(1, targets[:, None])[:, 0]
    if not any(needed):
        return losses, []
    slope.exp_().scatter_add_(1, targets[:, None], -slope.new_ones(len(targets), 1))
    wanted = [x for x, n in zip(inputs, needed, strict=True) if n]
    found = iter(torch.autograd.grad(logits, wanted, slope.to(logits.dtype), allow_unused=True))
    return losses, [next(found) if n else None for n in needed]
