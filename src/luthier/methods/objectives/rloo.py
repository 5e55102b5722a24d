"""REINFORCE leave-one-out: each sampled answer is measured by the mean reward of the others of its prompt."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from luthier.core.errors import LuthierError
from luthier.methods.objectives._online import Online, figures, learned_rows, policies


@dataclass(frozen=True)
class RLOO(Online):
    """L = - mean over answers of min(ρ A, clip(ρ, 1 - ε, 1 + ε) A), A_i = R_i - mean of R_j over j ≠ i

    R = r - β log π_old(y|x)/π_ref(y|x): the KL penalty is part of the reward of a whole answer. ρ = π(y|x)/π_old(y|x)
    is the ratio of whole answers; with one iteration it is 1, and the gradient is that of A log π(y|x), the paper's
    REINFORCE. The clipped ratio is TRL's, for further iterations. The reference is the model with its adapter off.
    """

    paper = "Ahmadian et al. 2024, arXiv 2402.14740; Kool et al. 2019"

    beta: float = 0.05
    """β, how strongly the model is held to the reference; 0.05 is TRL's."""
    epsilon: float = 0.2
    """ε, how far ρ may move."""

    def check(self) -> None:
        super().check()
        self.within("beta", 0)
        self.within("epsilon", 0, 1)
        if self.iterations == 1 and self.epsilon != type(self).epsilon:
            raise LuthierError(
                "with one iteration the policy is the one that sampled the answers, and no ratio is ever clipped: "
                "epsilon would be ignored. Raise iterations, or leave it out."
            )

    def rollouts(self, step, seed):
        made = super().rollouts(step, seed)
        return dataclasses.replace(made, reference=self.beta > 0, kl=self.beta > 0, old=self.iterations > 1)

    def advantages(self, scored):
        import torch

        rewards = scored.rewards - self.beta * scored.kl if self.beta else scored.rewards
        known = ~rewards.isnan()
        count = known.sum(1, keepdim=True)
        gap = torch.where(known, rewards - rewards.nanmean(1, keepdim=True), 0.0)
        return torch.where(count > 1, gap * count / (count - 1).clamp(min=1), 0.0)

    def loss_and_figures(self, model, batch):
        import torch

        found = policies(model, batch, self.temperature)
        advantage = batch["advantage"].to(found.logs.dtype)
        ratio = ((found.logs - found.old) * found.mask).sum(1).exp()
        kept = ratio.clamp(1 - self.epsilon, 1 + self.epsilon)
        learned = found.mask.any(1)
        losses = -torch.min(ratio * advantage, kept * advantage) * learned
        low, over = (ratio < 1 - self.epsilon) & (advantage < 0), (ratio > 1 + self.epsilon) & (advantage > 0)
        told = figures(batch, found, (low | over)[:, None].expand_as(found.mask))
        return losses.sum() / learned.sum().clamp(min=1), told

    def token_counts(self, batch, labels):
        """[1], the answers that are learned."""
        return learned_rows(labels)
