"""AMFT: fine-tuning and reinforcement learning in one loss, whose balance is learned from rows that are held out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from luthier.core.contracts.objective import ADVANTAGE, PART
from luthier.core.errors import LuthierError
from luthier.methods.objectives._online import CURVES, TOLD
from luthier.methods.objectives.grpo import GRPO

MU, TARGET, ENTROPY, SEEN = "mu", "target_entropy", "entropy", "seen"
"""The state: μ, the target H*, the last step's entropy, and how many steps H* is the mean of."""


@dataclass(frozen=True)
class AMFT(GRPO):
    """L = (1 - μ) L_GRPO + μ L_SFT; μ ← clip(μ - η_μ dL_val/dμ + η_H (H* - H), μ_min, μ_max)

    dL_val/dμ = - η ⟨∇L_val, ∇L_SFT - ∇L_GRPO⟩ is the derivative of the loss on held-out rows after a step of gradient
    descent with learning rate η, at which μ is lowered every `every` steps. H is the mean entropy of the policy over
    sampled answers, H* that of the first `targets` steps behind the warm-up, in which μ = 1. Their paper has PPO for
    reinforcement learning, which it allows to be replaced; here it is `grpo` with its settings. L_val is the
    fine-tuning loss of one batch of held-out rows. AdamW's step is not η ∇L: the derivative is that of plain descent,
    as in the paper.
    """

    paper = "He et al. 2025, arXiv 2508.06944"
    reads = ("answers",)
    evaluates = True
    steered = True
    curves = (("mu",), *CURVES)

    mu: float = 0.8
    """μ behind the warm-up, the share of fine-tuning."""
    mu_min: float = 0.05
    mu_max: float = 0.95
    """The bounds of μ."""
    mu_lr: float = 1e-4
    """η_μ, the rate of the meta-gradient."""
    entropy_lr: float = 5e-4
    """η_H, the rate of the entropy's gap."""
    sft_steps: int = 0
    """Steps of the warm-up by fine-tuning alone; the paper starts from a fine-tuned model."""
    targets: int = 20
    """Steps whose mean entropy is the target H*."""
    every: int = 20
    """Steps between two changes of μ."""

    def check(self) -> None:
        super().check()
        for name in ("mu_lr", "entropy_lr", "sft_steps"):
            self.within(name, 0)
        for name in ("targets", "every"):
            self.within(name, 1)
        if not 0 <= self.mu_min <= self.mu <= self.mu_max <= 1:
            raise LuthierError(
                f"μ is {self.mu}, its bounds {self.mu_min} and {self.mu_max}; expected 0 ≤ mu_min ≤ mu ≤ mu_max ≤ 1."
            )
        if self.iterations > 1 and self.sft_steps % self.iterations:
            raise LuthierError(f"sft_steps is {self.sft_steps}; expected a multiple of iterations, {self.iterations}.")

    def rollouts(self, step, seed):
        if step < self.sft_steps:
            return None
        return dataclasses.replace(super().rollouts(step, seed), beside=True)

    def loss_and_figures(self, model, batch):
        import torch

        from luthier.methods.objectives._cross_entropy import causal_loss

        if ADVANTAGE not in batch:
            tuned = causal_loss(model, batch)
            return torch.stack([tuned * 0, tuned]), {}
        own = batch[PART][:, 1].bool()
        tuned = causal_loss(model, {key: value[own] for key, value in batch.items() if key not in TOLD})
        sampled, told = super().loss_and_figures(model, {key: value[~own] for key, value in batch.items()})
        return torch.stack([sampled, tuned.to(sampled.dtype)]), told

    def token_counts(self, batch, labels):
        """[2]: of the sampled answers as grpo counts them, and the tokens of the rows."""
        import torch

        if PART not in batch:
            return torch.stack([labels.sum() * 0, labels.sum()])
        own = batch[PART][:, 1].bool()
        return torch.cat([super().token_counts(batch, labels[~own]), labels[own].sum()[None]])

    def part_weights(self, counts, state):
        """1 - μ and μ; fine-tuning alone where nothing was sampled."""
        mu = state.get(MU, self.mu) if counts[0] > 0 else 1.0
        return counts.float().new_tensor([1 - mu, mu])

    def observe(self, state, step, figures):
        if "entropy" not in figures:
            return state
        seen, now = state.get(SEEN, 0), figures["entropy"]
        new = {MU: self.mu, **state, ENTROPY: now}
        if seen < self.targets:
            new |= {SEEN: seen + 1, TARGET: (state.get(TARGET, 0.0) * seen + now) / (seen + 1)}
        return new

    def steers(self, step):
        return step > self.sft_steps and (step - self.sft_steps) % self.every == 0

    def steer(self, state, lr, slopes):
        mu, gap = state.get(MU, self.mu), state.get(TARGET, 0.0) - state.get(ENTROPY, 0.0)
        moved = mu - self.mu_lr * meta_gradient(lr, slopes) + self.entropy_lr * gap
        return {**state, MU: min(max(moved, self.mu_min), self.mu_max)}


def meta_gradient(lr: float, slopes) -> float:
    """dL_val/dμ behind θ - η ((1 - μ) ∇L_RL + μ ∇L_SFT), from ⟨∇L_val, ∇L_RL⟩ and ⟨∇L_val, ∇L_SFT⟩."""
    sampled, tuned = slopes
    return -lr * (tuned - sampled)
