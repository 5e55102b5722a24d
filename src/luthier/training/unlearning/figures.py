"""What an unlearning is measured by: the loss of every row, and whether it is answered right, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.numerics.resampling import mean_interval
from luthier.core.sites.probe import eval_mode
from luthier.data.labels import labels_in_order
from luthier.models import Loaded
from luthier.training.row_gradients import log_loss
from luthier.training.unlearning.klom import membership
from luthier.training.unlearning.rows import Rows


def flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (logits [places, classes], labels [places]) at the places that have a label."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if labels.dim() == 1:
        return logits, labels
    at = labels[:, 1:].ne(-100)
    return logits[:, :-1][at], labels[:, 1:][at]


def row_losses(loaded: Loaded, rows: Rows) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the loss of every row and whether it is answered right, by set."""
    found = {}
    for name, features in rows.encoded.items():
        own = labels_in_order(features, rows.labels, loaded.model.config)
        losses, right = [], []
        with eval_mode(loaded.model):
            for start in range(0, len(own), 16):
                batch = rows.collate([own[i] for i in range(start, min(start + 16, len(own)))])
                batch.pop("rows")
                labels = batch.pop("labels").to(loaded.model.device)
                logits = loaded.model(**{key: t.to(loaded.model.device) for key, t in batch.items()}).logits
                for row, label in zip(logits, labels, strict=True):
                    losses.append(float(log_loss(row, label)))
                    said, wanted = flat(row[None], label[None])
                    right.append(bool(said.argmax(-1).eq(wanted).all()))
        found[name] = np.asarray(losses), np.asarray(right, dtype=float)
    return found


def figures_of(rows: Rows, before: Any, after: Any, seed: int) -> dict[str, dict[str, float]]:
    """Returns what is told of both: by set the loss and the accuracy with the 95% interval after, over rows, and of the
    rows to forget the membership test."""
    found: dict[str, dict[str, float]] = {}
    for name in after:
        for place, what in enumerate(("loss", "accuracy")):
            values = after[name][place]
            low, high = mean_interval(values, seed, share=what == "accuracy")
            told = {"before": float(before[name][place].mean()), "after": float(values.mean()), "count": len(values)}
            found[f"{name} {what}"] = told | {"low": low, "high": high}
    if "test" in after:
        tested = {when: membership(each["forget"][0], each["test"][0], seed)
                  for when, each in (("before", before), ("after", after))}  # fmt: skip
        span = {"low": tested["after"]["low"], "high": tested["after"]["high"]}
        found["membership AUC"] = {"before": tested["before"]["auc"], "after": tested["after"]["auc"], **span}
    return found
