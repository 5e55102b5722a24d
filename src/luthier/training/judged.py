"""Figures of a task beside the loss: what the model says of rows that are held out, against their labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from luthier.core.numerics import many, tags
from luthier.core.numerics.agreement import agreement, by_class, closeness, macro

ONE_CLASS = ("classification", "image-classification", "audio-classification")
ENTITIES, MANY = ("f1", "precision", "recall", "accuracy"), ("micro_f1", "micro_precision", "micro_recall")


def told_of(task: str, labels: Sequence[str] | None) -> tuple[tuple[str, ...], ...]:
    """Returns the names of the figures of a task with these labels, those that are drawn together side by side."""
    if task in ONE_CLASS:
        return (("accuracy", "mcc", "macro_f1", "macro_precision", "macro_recall"),)
    if task == "regression":
        return (("pearson",), ("mse",))
    if task == "multi-label":
        return ((*MANY, "exact_match"),)
    if task == "token-classification":
        return (ENTITIES,) if tags.marked(labels or ()) else (("accuracy",),)
    return ()


class Judge:
    """What the model said of the rows of one evaluation; a row that comes twice, as the last one of a process may,
    counts once."""

    def __init__(self, task: str, names: Sequence[str]) -> None:
        """`names` are the model's classes, in its order."""
        self.task, self.names = task, list(names)
        self.rows: dict[int, tuple[Any, Any]] = {}
        """(what was said, what is right) by the row's number."""
        self._logits: Tensor | None = None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Sees what the model gives while the context lasts."""
        hook = model.register_forward_hook(self._see)
        try:
            yield
        finally:
            hook.remove()

    def _see(self, module: nn.Module, args: Any, output: Any) -> None:
        self._logits = output.logits.detach()

    def add(self, rows: Sequence[int], labels: Tensor) -> None:
        """Takes a batch that the model has just been given."""
        assert self._logits is not None
        said, right = self._logits.float().cpu().numpy(), labels.cpu().numpy()
        for row, logits, label in zip(rows, said, right, strict=True):
            self.rows[row] = self._pair(logits, label)

    def _pair(self, logits: Any, label: Any) -> tuple[Any, Any]:
        if self.task == "regression":
            return float(logits[0]), float(label)
        if self.task == "multi-label":
            return many.chosen(logits), label > 0.5
        if self.task == "token-classification":
            words = label >= 0
            return self._named(logits[words].argmax(-1)), self._named(label[words])
        return self.names[int(logits.argmax())], self.names[int(label)]

    def _named(self, places: Any) -> list[str]:
        return [self.names[i] for i in places]

    def gather(self) -> None:
        """Takes what the other processes saw."""
        from accelerate.utils import gather_object

        for found in gather_object([self.rows]):
            self.rows |= found

    def figures(self) -> dict[str, float]:
        """Returns what `told_of` names, as `luthier evaluate` defines it; an undefined correlation is 0."""
        import numpy as np

        if not self.rows:
            return {}
        said, right = zip(*self.rows.values(), strict=True)
        if self.task == "token-classification":
            marked = tags.marked(self.names)
            return tags.figures(tags.counted(said, right, marked), marked)
        if self.task == "multi-label":
            return many.figures(np.stack(said), np.stack(right))
        if self.task == "regression":
            found = closeness(np.array(said), np.array(right))
            return found | ({"pearson": 0.0} if math.isnan(found["pearson"]) else {})
        return agreement(np.array(said), np.array(right)) | macro(by_class(said, right, self.names))
