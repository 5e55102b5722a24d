"""Group relative policy optimisation: sampled answers that beat the others of their prompt become likelier."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from luthier.core.errors import LuthierError
from luthier.methods.objectives._online import Online, figures, learned_rows, mean_of, policies

OWN_BETA = {"grpo": 0.04, "dr_grpo": 0.0, "dapo": 0.0}
OWN_HIGH = {"grpo": 0.2, "dr_grpo": 0.2, "dapo": 0.28}
OWN_OVERLONG = {"grpo": "keep", "dr_grpo": "keep", "dapo": "punish"}
OWN_DYNAMIC = {"grpo": 0, "dr_grpo": 0, "dapo": 4}
"""What the papers of the variants have."""
SMALL = 1e-4
"""Added to the standard deviation of a group's rewards."""


@dataclass(frozen=True)
class GRPO(Online):
    """L = - mean over answers of mean over tokens of min(ρ A, clip(ρ, 1 - ε, 1 + ε') A) - β (k - ln k - 1), k = π_ref/π

    ρ = π(y_t)/π_old(y_t); A = (r - mean r) / (std r + 1e-4) over the `group` answers of a prompt, where the standard
    deviation is that of a sample (divided by G - 1), as in TRL; the paper does not say. The reference is the model with
    its adapter off. `dr_grpo` leaves the deviation out, and sums over tokens and divides by max_tokens instead of each
    answer's own length. `dapo` takes the mean over all tokens of the step, ε' = 0.28, no KL term, and lowers the reward
    of answers longer than max_tokens - `cache` (their equation 13), and samples dynamically: prompts whose answers all
    have one reward, and so no gradient, give way to others of the training rows (their equation 11), here at most
    `dynamic` times a step, so that a task that is solved, or hopeless, ends; what is left is counted (`flat`). Answers
    of unknown reward are left out of the group and of the loss; TRL 1.16 takes a reward that is missing beside others
    as 0, and keeps answers without any in the mean. With one iteration ρ is 1, and ε, ε' have no effect.
    """

    paper = (
        "Shao et al. 2024, arXiv 2402.03300; dr_grpo: Liu et al. 2025, arXiv 2503.20783; dapo: Yu et al. 2025, arXiv "
        "2503.14476"
    )
    variant: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """The published loss."""
    beta: float | None = None
    """β, how strongly the model is held to the reference. Default: the variant's own: 0.04, of the others 0."""
    epsilon: float = 0.2
    """ε, how far ρ may fall."""
    epsilon_high: float | None = None
    """ε', how far ρ may rise. Default: the variant's own: 0.2, of dapo 0.28."""
    overlong: Literal["keep", "leave_out", "punish"] | None = None
    """What becomes of answers that hit max_tokens: learned as all others, left out of the loss, or of a lower reward
    the nearer they come. Default: the variant's own: keep, of dapo punish."""
    dynamic: int | None = None
    """How often a step samples other prompts for those whose answers all have one reward. Default: the variant's own:
    0, of dapo 4."""
    cache: int | None = None
    """How many tokens before max_tokens the punishment begins. Default: a fifth of max_tokens."""

    def check(self) -> None:
        super().check()
        self.within("beta", 0)
        self.within("epsilon", 0, 1)
        self.within("epsilon_high", 0)
        self.within("dynamic", 0)
        self.within("cache", 1, self.max_tokens)
        if self.cache is not None and self.handling != "punish":
            raise LuthierError("cache is where the punishment of long answers begins; overlong = punish has it.")
        if self.iterations == 1 and (self.epsilon != type(self).epsilon or self.epsilon_high is not None):
            raise LuthierError(
                "with one iteration the policy is the one that sampled the answers, and no ratio is ever clipped: "
                "epsilon would be ignored. Raise iterations, or leave it out."
            )

    @property
    def kl_weight(self) -> float:
        """β in effect."""
        return OWN_BETA[self.variant] if self.beta is None else self.beta

    @property
    def handling(self) -> str:
        """What becomes of answers that hit the limit, in effect."""
        return self.overlong or OWN_OVERLONG[self.variant]

    def rollouts(self, step, seed):
        made = super().rollouts(step, seed)
        rounds = OWN_DYNAMIC[self.variant] if self.dynamic is None else self.dynamic
        return dataclasses.replace(made, reference=self.kl_weight > 0, old=self.iterations > 1, rounds=rounds)

    def advantages(self, scored):
        import torch

        rewards = scored.rewards
        if self.handling == "punish":
            rewards = rewards + self.punishment(scored.lengths)
        known = ~rewards.isnan()
        count = known.sum(1, keepdim=True)
        gap = torch.where(known, rewards - rewards.nanmean(1, keepdim=True), 0.0)
        if self.variant != "dr_grpo":
            gap = gap / ((gap.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt() + SMALL)
        return gap

    def punishment(self, lengths):
        """0 up to max_tokens - cache tokens, then falling to -1 at max_tokens."""
        cache = self.cache or max(1, self.max_tokens // 5)
        return ((self.max_tokens - cache - lengths) / cache).clamp(min=-1, max=0)

    def left_out(self, scored):
        gone = super().left_out(scored)
        return gone | scored.truncated if self.handling == "leave_out" else gone

    def loss_and_figures(self, model, batch):
        import torch

        found = policies(model, batch, self.temperature)
        high = OWN_HIGH[self.variant] if self.epsilon_high is None else self.epsilon_high
        advantage, ratio = batch["advantage"][:, None].to(found.logs.dtype), found.ratio
        kept = ratio.clamp(1 - self.epsilon, 1 + high)
        gain = torch.min(ratio * advantage, kept * advantage)
        losses = self.kl_weight * found.kl - gain if self.kl_weight else -gain
        low, over = (ratio < 1 - self.epsilon) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)
        return self.mean(losses, found.mask), figures(batch, found, low | over)

    def mean(self, losses, mask):
        """The mean loss over a batch, from that of each token [rows, T - 1]."""
        rows = mask.any(1).sum().clamp(min=1)
        if self.variant == "dapo":
            return (losses * mask).sum() / mask.sum().clamp(min=1)
        if self.variant == "dr_grpo":
            return (losses * mask).sum() / (rows * self.max_tokens)
        return mean_of(losses, mask).sum() / rows

    def token_counts(self, batch, labels):
        """[1]: the answers that are learned; of dapo, their tokens."""
        return labels.sum()[None] if self.variant == "dapo" else learned_rows(labels)
