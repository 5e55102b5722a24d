"""Contrastive preference optimisation: preferences and fine-tuning, without a reference."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.methods.objectives._pairs import Pairs, Sides, answers, figures, preferred


@dataclass(frozen=True)
class CPO(Pairs):
    """L = - mean over the pairs of log σ(β (log π(y_w|x) - log π(y_l|x))) + α L_sft(y_w)

    The log-probability of an answer is the sum over its tokens; L_sft is the mean over the tokens of the chosen answers
    of - log π. `smoothing` is ε of `dpo`. The reward of an answer is β log π(y|x).
    """

    paper = "Xu et al. 2024, arXiv 2401.08417"

    beta: float = 0.1
    """β: how sharply the answers are told apart."""
    alpha: float = 1.0
    """α, the weight of fine-tuning on the chosen answers (0: none)."""
    smoothing: float = 0.0
    """ε, the share of the pairs that are taken to be the wrong way round, below a half."""

    def check(self) -> None:
        self.within("beta", 0)
        self.within("alpha", 0)
        self.within("smoothing", 0, 0.5)

    def loss_and_figures(self, model, batch):
        import torch

        logps, tokens = answers(model, batch)
        losses = preferred(self.beta * logps.margin, self.smoothing)
        learned = -logps.chosen.sum() / tokens.chosen.sum().clamp(min=1)
        rewards = Sides(self.beta * logps.chosen, self.beta * logps.rejected)
        return torch.stack([losses.mean(), learned]), figures(rewards, tokens)

    def token_counts(self, batch, labels):
        """[2]: the pairs, the tokens of the chosen answers."""
        import torch

        return torch.stack([super().token_counts(batch, labels)[0], labels[0::2].sum()])

    def part_weights(self, counts, state):
        import torch

        return torch.tensor([1.0, self.alpha], device=counts.device)
