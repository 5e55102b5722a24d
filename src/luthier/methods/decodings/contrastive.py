"""Contrastive generation: what a fine-tuned model would say and its pre-trained one would not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.decoding import Decoding
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Contrastive(Decoding):
    """scores = tuned - γ pretrained where p_tuned >= α max p_tuned, else -inf

    Both are logits. Drawn from (`temperature` 1), it shows what is new in the data that a model was fine-tuned on;
    greedily, it contrasts a strong model with a weak one. Where the two models agree, all the kept tokens score alike.
    In the iterated form (`--rounds`) the pre-trained model takes a step on each text drawn, so that what was shown once
    is no longer new and rarer parts of the data come up.
    """

    paper = "Isonuma and Titov 2024, arXiv 2410.14765"
    roles: ClassVar[dict[str, str]] = {
        "tuned": "the fine-tuned model, whose likely tokens are scored",
        "pretrained": "the model that it was fine-tuned from",
    }
    learns: ClassVar[str | None] = "pretrained"
    neutral: ClassVar = {"gamma": 0.0, "alpha": 0.0}

    gamma: float = 1.0
    """γ, how much the pre-trained model counts."""
    alpha: float = 0.1
    """α, the share of its likeliest token's probability that a token needs to be kept."""

    def check(self):
        if not 0 <= self.alpha <= 1:
            raise LuthierError(f"contrastive.alpha is {self.alpha}; expected a number from 0 to 1.")

    def scores(self, logits):
        tuned = logits["tuned"]
        floor = tuned.amax(-1, keepdim=True) + (math.log(self.alpha) if self.alpha else -math.inf)
        return (tuned - self.gamma * logits["pretrained"]).masked_fill(tuned < floor, -math.inf)
