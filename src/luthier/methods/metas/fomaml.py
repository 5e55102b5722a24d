"""First-order MAML: the outer step takes the gradient where the inner loop ended."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from luthier.core.contracts.meta import Meta


@dataclass(frozen=True)
class FOMAML(Meta):
    """θ_d = θ - α ∇L(θ; demonstrations of d), θ ← θ - η mean_d ∇L(θ_d; other rows of d)

    The second derivative of MAML is left out: ∂θ_d / ∂θ counts as 1. With α = 0 a step is the multi-task step. α, the
    inner steps and the sizes are ours; AdaptAgent says one or two demonstrations, and an outer step with the adapted
    gradient.
    """

    paper = "AdaptAgent: Verma et al. 2024, arXiv 2411.13451; first-order MAML: Finn et al. 2017, arXiv 1703.03400"

    def adapt(self, loss, params, shown, draw):
        now = {key: p.detach() for key, p in params.items()}
        for _ in range(self.inner_steps if self.inner_lr else 0):
            _, slopes = gradient(loss, now, shown)
            now = {key: p - self.inner_lr * slopes[key] for key, p in now.items()}
        return now

    def outer(self, loss, params, shown, asked, draw):
        return gradient(loss, self.adapt(loss, params, shown, draw), asked)


def gradient(loss, params, rows):
    """(the loss, its gradient by tensor), at these tensors."""
    leaves = {key: p.detach().requires_grad_() for key, p in params.items()}
    value = loss(leaves, rows)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    slopes = {key: torch.zeros_like(p) if g is None else g for (key, p), g in zip(leaves.items(), found, strict=True)}
    return value.detach(), slopes
