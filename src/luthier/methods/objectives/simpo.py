"""Simple preference optimisation: the mean log-probability is the reward, and a margin has to be won."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.methods.objectives._pairs import Pairs, Sides, answers, figures, preferred


@dataclass(frozen=True)
class SimPO(Pairs):
    """L = - mean over the pairs of log σ(β/|y_w| log π(y_w|x) - β/|y_l| log π(y_l|x) - γ)

    |y| counts the tokens of an answer, its end included; there is no reference. The reward of an answer is
    β/|y| log π(y|x). TRL's CPOTrainer has it as loss_type = simpo, and adds cpo_alpha = 1 times the loss of fine-tuning
    unless told otherwise, which the paper does not.
    """

    paper = "Meng, Xia, Chen 2024, arXiv 2405.14734"

    beta: float = 2.0
    """β, the scale of the rewards."""
    gamma: float = 1.0
    """γ, the margin by which the chosen answer has to win."""

    def check(self) -> None:
        self.within("beta", 0)

    def loss_and_figures(self, model, batch):
        logps, tokens = answers(model, batch)
        means = logps.over(tokens)
        rewards = Sides(self.beta * means.chosen, self.beta * means.rejected)
        return preferred(rewards.margin - self.gamma).mean(), figures(rewards, tokens)
