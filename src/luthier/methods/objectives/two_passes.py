"""Two passes through what is random in training, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.objective import Objective
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class TwoPasses(Objective):
    """L = L_sft(p) + γ L_sft(q) + λ mean over answers' tokens of ½ (KL(q̄ ‖ p) + KL(p̄ ‖ q)), p and q two passes

    The passes differ in what is drawn in each: experts (mosa), dropout. A bar marks what gets no gradient, as in the
    code of MoSA, which has γ = 0; R-Drop has gradients on both sides, γ = 1, and halves all of it. Evaluation takes one
    pass. For classification the mean is over rows.
    """

    paper = "MoSA: Zhang et al. 2023, arXiv 2312.02923 (code: Theia-4869/MoSA); R-Drop: Liang et al. 2021, 2106.14448"
    neutral: ClassVar = {"weight": 0.0, "second": 0.0}

    weight: float = 1.0
    """λ, the weight of the divergence."""
    second: float = 0.0
    """γ, the weight of the second pass's own loss."""

    def check(self) -> None:
        for name in ("weight", "second"):
            self.within(name, 0)

    def rows(self, rows):
        if self.weight and rows.examples.task in ("regression", "reward"):
            raise LuthierError(f"two_passes compares distributions, and a model for {rows.examples.task} gives none.")
        return rows.features

    def loss(self, model, batch):
        import torch

        from luthier.methods.objectives._cross_entropy import causal_loss

        if not torch.is_grad_enabled() or not (self.weight or self.second):
            return causal_loss(model, batch)
        first, second = model(**batch), model(**batch)
        loss = first.loss + self.second * second.loss if self.second else first.loss
        if not self.weight:
            return loss
        p, q = (wanted(out.logits, batch["labels"]).float().log_softmax(-1) for out in (first, second))
        apart = divergence(q.detach(), p) + divergence(p.detach(), q)
        return loss + (self.weight * 0.5 * apart).to(loss.dtype)


def wanted(logits, labels):
    """Returns the logits whose labels are in the loss, [n, classes]; a causal model's predict the token behind."""
    if labels.dim() == 1:
        return logits
    if logits.shape[1] != labels.shape[1]:
        raise LuthierError(f"two_passes has logits {tuple(logits.shape)} for labels {tuple(labels.shape)}.")
    return logits[:, :-1][labels[:, 1:].ne(-100)]


def divergence(p, q):
    """Returns KL(p ‖ q), the mean over the rows of log-probabilities [n, classes]."""
    return (p.exp() * (p - q)).sum(-1).mean()
