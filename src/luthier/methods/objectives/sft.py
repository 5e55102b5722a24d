"""Supervised fine-tuning: the loss that the model itself computes from the labels."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.objective import STRUCTURED, Objective


@dataclass(frozen=True)
class SFT(Objective):
    """L = - mean over the answer's tokens of log p(token | before)

    Cross-entropy over the positions whose label is not -100; for classification over the classes, for regression
    the mean squared error, as the model's own head defines it. A large vocabulary is gone through in chunks.
    """

    paper = "the baseline"
    sees = True

    def serves(self, task):
        """Also rows of several labels, where the loss is still the model's own."""
        return super().serves(task) or (task in STRUCTURED and type(self).loss is SFT.loss)

    def loss(self, model, batch):
        """A scalar, `model(**batch).loss`; `batch` holds the model's own arguments, labels included."""
        from luthier.methods.objectives._cross_entropy import causal_loss

        return causal_loss(model, batch)
