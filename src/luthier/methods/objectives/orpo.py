"""Odds ratio preference optimisation: fine-tuning that also moves the odds away from the rejected answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.methods.objectives._pairs import Pairs, Sides, answers, figures, preferred

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ORPO(Pairs):
    """L = L_sft(y_w) - λ mean over the pairs of log σ(log odds(y_w|x)/odds(y_l|x)), odds(y|x) = p/(1 - p)

    log p is the mean over the tokens of an answer of log π; L_sft the mean over the tokens of the chosen answers of
    - log π. There is no reference. TRL and the authors' code learn the prompt as well in L_sft, where the paper writes
    y_w given x: here prompts are not learned. TRL takes the odds in float32 whatever the model's. The reward of an
    answer is its log odds.
    """

    paper = "Hong, Lee, Thorne 2024, arXiv 2403.07691"

    lam: float = 0.1
    """λ, the weight of the odds ratio (0: fine-tuning on the chosen answers)."""

    def check(self) -> None:
        self.within("lam", 0)

    def loss_and_figures(self, model, batch):
        import torch

        logps, tokens = answers(model, batch)
        means = logps.over(tokens)
        odds = Sides(log_odds(means.chosen), log_odds(means.rejected))
        learned = -logps.chosen.sum() / tokens.chosen.sum().clamp(min=1)
        return torch.stack([learned, preferred(odds.margin).mean()]), figures(odds, tokens)

    def token_counts(self, batch, labels):
        """[2]: the tokens of the chosen answers, the pairs."""
        import torch

        return torch.stack([labels[0::2].sum(), super().token_counts(batch, labels)[0]])

    def part_weights(self, counts, state):
        import torch

        return torch.tensor([1.0, self.lam], device=counts.device)


def log_odds(log_p: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p < 0, stable at both ends; where p rounds to 1, the largest p below it."""
    import torch

    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    near = log_p > -0.6931471805599453  # p above a half, where 1 - p cancels
    high, low = log_p.where(near, -1.0), log_p.where(~near, -1.0)
    return log_p - torch.where(near, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))
