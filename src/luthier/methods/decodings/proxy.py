"""Proxy-tuning: a large model takes over what tuning did to a small one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.decoding import Decoding


@dataclass(frozen=True)
class Proxy(Decoding):
    """scores = base + α (expert - anti)

    All three are logits. With α = 1 and the base as anti-expert, the expert alone speaks; with expert and anti-expert
    alike, the base does.
    """

    paper = "Liu et al. 2024, arXiv 2401.08565"
    roles: ClassVar[dict[str, str]] = {
        "base": "the large model that is led",
        "expert": "a small model, tuned",
        "anti": "the same small model before it was tuned",
    }
    draft = "expert"
    neutral: ClassVar = {"alpha": 0.0}

    alpha: float = 1.0
    """α, how much of the difference counts."""

    def scores(self, logits):
        return logits["base"] + self.alpha * (logits["expert"] - logits["anti"])
