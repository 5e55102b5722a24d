"""Emulated fine-tuning: the log-ratios of small tuned models to their reference are added to a large model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.decoding import Decoding
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Emulated(Decoding):
    """log π = log p_base + Σ w_i (log p_tuned_i - log p_reference) + const

    With the base larger than the tuned models this is up-scaling. With one tuned model it is proxy-tuning: the two
    differ by a constant in each row. The base enters by its logits, log p_base up to such a constant, so that w = 0
    leaves them as they are.
    """

    paper = "Mitchell et al. 2023, arXiv 2310.12962"
    roles: ClassVar[dict[str, str]] = {
        "base": "the model that is led",
        "tuned": "small tuned models, one or more",
        "reference": "the small model that they were tuned from",
    }
    several = ("tuned",)
    draft = "tuned"
    neutral: ClassVar = {"weights": (0.0,)}

    weights: tuple[float, ...] = (1.0,)
    """w_i: one number for each tuned model, in their order, or one for all."""

    def check(self):
        if not self.weights or not all(isinstance(w, int | float) for w in self.weights):
            raise LuthierError(f"emulated.weights are {list(self.weights)}; expected one number or more.")

    def check_models(self, counts):
        if len(self.weights) not in (1, counts["tuned"]):
            raise LuthierError(
                f"{len(self.weights)} weights for {counts['tuned']} tuned models; give one for each, or one for all."
            )

    def scores(self, logits):
        tuned = logits["tuned"].log_softmax(-1)
        ratios = tuned - logits["reference"].log_softmax(-1)
        weights = ratios.new_tensor(self.weights).expand(len(ratios))
        return logits["base"] + (weights[:, None, None] * ratios).sum(0)
