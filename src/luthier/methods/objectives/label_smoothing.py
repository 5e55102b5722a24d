"""Label smoothing: a share of the target is spread over all tokens or classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import unwrapped
from luthier.methods.objectives.sft import SFT


@dataclass(frozen=True)
class LabelSmoothing(SFT):
    """L = mean over the labels of (1 - ε) (-log p(y)) - ε mean_v log p(v), v over all tokens or classes

    The logits of the whole batch are read, where plain fine-tuning goes through a large vocabulary in chunks.
    """

    paper = "Szegedy et al. 2016, arXiv 1512.00567"
    neutral: ClassVar = {"epsilon": 0.0}

    epsilon: float = 0.1
    """Share of the target that is spread, ε."""

    def check(self):
        self.within("epsilon", 0, 0.99)

    def loss(self, model, batch):
        if not self.epsilon:
            return super().loss(model, batch)
        inner: Any = unwrapped(model)
        logits, labels = model(**batch).logits, batch["labels"]
        if logits.shape[-1] == 1:
            raise LuthierError("label_smoothing spreads the target over classes, and these rows have numbers.")
        if labels.dim() == 2 and not inner.config.is_encoder_decoder:
            logits, labels = logits[:, :-1], labels[:, 1:]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return nn.functional.cross_entropy(wide.flatten(0, -2), labels.flatten(), label_smoothing=self.epsilon)
