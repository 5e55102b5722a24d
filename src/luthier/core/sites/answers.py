"""What a model says of every label: its loss, whether it would have been right, how sure it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.core.contracts.examination import Batch
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import widened
from luthier.core.sites.probe import eval_mode
from luthier.core.sites.structure import decoder_path


@dataclass(frozen=True)
class Answers:
    """One entry per label (of a token, or of a row to classify), in order."""

    loss: Tensor
    """The loss in nats, [n]."""
    hit: Tensor
    """Whether it is right, [n]: 1 where the likeliest answer is the label."""
    confidence: Tensor
    """The confidence, [n]: the probability of the likeliest answer."""
    row: Tensor
    """The index of its row, [n], from 0."""

    def by_row(self, rows: int) -> Tensor:
        """Returns [rows, 3]: the sums of loss and hits, and the labels of each row."""
        parts = torch.stack([self.loss, self.hit, torch.ones_like(self.hit)], 1)
        return parts.new_zeros(rows, 3).index_add(0, self.row, parts)


def answers(model: nn.Module, batches: Iterable[Batch], call: Callable | None = None) -> Answers:
    """Returns the model's answers to all labels; float64 on the CPU. `call` is what is called instead of it."""
    found, start = [], 0
    with eval_mode(model):
        for batch in batches:
            logits, labels, row = spoken(model, batch, call)
            likely = torch.log_softmax(widened(logits), -1)
            top = likely.max(-1)
            loss = -likely.gather(-1, labels[:, None])[:, 0]
            found.append((loss, (top.indices == labels).to(likely.dtype), top.values.exp(), row + start))
            start += len(batch["labels"])
    return Answers(*(torch.cat(each).cpu() for each in zip(*found, strict=True)))


def spoken(model: nn.Module, batch: Batch, call: Callable | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (logits [n, classes], labels [n], row of each [n]) of one batch; labels of -100 are left out."""
    device = next(model.parameters()).device
    given = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    labels = given["labels"]
    if labels.is_floating_point():
        raise LuthierError("the rows carry numbers; examinations of answers take classes and texts.")
    logits = (call or model)(**given).logits
    if labels.dim() == 1:
        return logits, labels, torch.arange(len(labels), device=device)
    if decoder_path(model) is None:  # the token at t is foretold at t - 1
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = labels != -100
    return logits[kept], labels[kept], kept.nonzero()[:, 0]


def rows_of(batches: Sequence[Batch]) -> int:
    """Returns the rows in all."""
    return sum(len(batch["labels"]) for batch in batches)
