"""Weighted classes: a rare class, or one that matters more, counts more in the loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.core.contracts.example import Example
from luthier.core.contracts.objective import by_part
from luthier.core.errors import LuthierError, near
from luthier.methods.objectives.sft import SFT

TASKS = ("classification", "image-classification", "audio-classification", "token-classification")
WEIGHT = "weight"
"""The feature with the weight of a row, or of each of its tokens; in a batch [rows] or [rows, T]."""
BALANCED, EQUAL = "balanced", "equal"


@dataclass(frozen=True)
class ClassWeights(SFT):
    """L = - Σ_i w(y_i) log p(y_i) / Σ_i w(y_i), over the rows, or over the words of tagged texts

    Balanced: w(c) = n / (C n_c), with n_c of the n labels of class c and C classes that occur (King and Zeng 2001, as
    scikit-learn has it). Rows that are held out are balanced by their own counts.
    """

    paper = "King and Zeng 2001 (Logistic regression in rare events data)"
    neutral: ClassVar = {"weights": EQUAL}

    weights: str = BALANCED
    """Weights by class: balanced, equal, or class=weight joined by commas (urgent=5,other=0.5); the others weigh 1."""

    def check(self) -> None:
        self.stated()

    def serves(self, task):
        return task in TASKS

    def stated(self) -> dict[str, float]:
        """Returns the weights that are given class by class; empty where they follow from the rows."""
        if self.weights in (BALANCED, EQUAL):
            return {}
        found = {}
        for each in self.weights.split(","):
            name, _, text = each.rpartition("=")
            try:
                found[name.strip()] = float(text)
            except ValueError:
                found[""] = math.nan
        if "" in found or not all(0 <= weight < math.inf for weight in found.values()):
            raise LuthierError(
                f"weights is {self.weights!r}; expected {BALANCED}, {EQUAL}, or class=weight,class=weight with weights "
                "of at least 0."
            )
        return found

    def of_classes(self, names: Sequence[str], examples: Sequence[Example]) -> Mapping[str, float]:
        """Returns the weight of each class; raises `LuthierError` for one that the rows do not have."""
        stated = self.stated()
        if strange := [name for name in stated if name not in names]:
            raise LuthierError(
                f"weights names {strange[0]!r}, which is not a class of the rows{near(strange[0], names)} They have: "
                f"{', '.join(names)}."
            )
        if stated:
            return {name: stated.get(name, 1.0) for name in names}
        counts = Counter(name for example in examples for name in labels_of_row(example))
        total = sum(counts.values())
        return {name: total / (len(counts) * counts[name]) if counts[name] else 0.0 for name in names}

    def rows(self, rows):
        if self.weights == EQUAL:
            return rows.features
        names = rows.examples.labels or []
        weights = self.of_classes(names, rows.examples.rows)
        return [feature | {WEIGHT: _weighed(feature["labels"], names, weights)} for feature in rows.features]

    def loss(self, model, batch):
        import torch

        if WEIGHT not in batch:
            return super().loss(model, batch)
        logits = model(**{key: value for key, value in batch.items() if key != WEIGHT}).logits
        wide, labels = logits.to(torch.promote_types(logits.dtype, torch.float32)), batch["labels"].flatten()
        losses = torch.nn.functional.cross_entropy(wide.flatten(0, -2), labels, reduction="none")
        weights = batch[WEIGHT].flatten().to(losses.dtype)
        return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)

    def token_counts(self, batch, labels):
        """[1], the sum of the weights."""
        if WEIGHT not in batch:
            return super().token_counts(batch, labels)
        weights = batch[WEIGHT].float()
        return by_part(batch, weights if weights.dim() == 1 else weights.sum(1))


def labels_of_row(example: Example) -> Sequence[str]:
    """Returns the class of a row, or those of its words."""
    return example.labels if example.labels is not None else [str(example.label)]


def _weighed(labels: int | list[int], names: Sequence[str], weights: Mapping[str, float]) -> float | list[float]:
    if isinstance(labels, list):
        return [0.0 if label < 0 else weights[names[label]] for label in labels]
    return weights[names[labels]]
