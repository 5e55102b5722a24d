"""The contract of a gate: what a fine-tuned model has to keep before it is released."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.core.contracts.component import Component
from luthier.core.contracts.examination import Batch, Change
from luthier.core.contracts.example import Example, Examples


@dataclass(frozen=True)
class Subject:
    """One model before and after fine-tuning, and the means to probe both.

    Only one of the two contexts is open at a time; both may yield the same module, with an adapter in the second.
    """

    before: Callable[[], AbstractContextManager[nn.Module]]
    after: Callable[[], AbstractContextManager[nn.Module]]
    changes: Callable[[], Sequence[Change]]
    """The tensors that changed; raises `LuthierError` where no weight can express what fine-tuning did."""
    rows: Callable[[str], Sequence[Mapping[str, Any]]]
    """The rows of a source as dictionaries of their columns."""
    prompts: Callable[[str], Sequence[Example]]
    """The rows of a source, each up to where an answer is to be written."""
    batches: Callable[[Sequence[Example]], Sequence[Batch]]
    """Examples as batches of the model's arguments, `labels` included."""
    labelled: Callable[[str], Sequence[Batch]]
    """The rows of a source with their answers or classes, as batches of the model's arguments."""
    write: Callable[[nn.Module, Sequence[Example], int], Sequence[str]]
    """The answers that a model writes to prompts, greedily, of at most so many tokens."""
    score: Callable[[nn.Module, str, int], Sequence[float]]
    """The score of a model's answer to each row of a source, from 0 to 1, of at most so many tokens."""
    examples: Callable[[str], Examples]
    """The rows of a source with their answers or classes."""

    def compared(self, measure: Callable[[nn.Module], Tensor]) -> Probes:
        """Returns a measurement that repeats itself exactly, [n], of the model before and after fine-tuning."""
        with self.before() as model:
            before = measure(model)
        with self.after() as model:
            after = measure(model)
        return Probes(before, after, before)


@dataclass(frozen=True)
class Probes:
    """One number for each probe: of the model before fine-tuning, after it, and of the first one once more."""

    before: Tensor
    """The numbers of the model before fine-tuning, [n]."""
    after: Tensor
    """The numbers of the model after fine-tuning, [n]."""
    null: Tensor
    """The numbers of the model before fine-tuning, measured a second time, [n]; equal to `before` where a measurement
    repeats itself exactly."""


@dataclass(frozen=True)
class Gate(Component):
    """A release check: `measure(subject)` probes the model before and after fine-tuning.

    The gate trips where the whole 95% interval of the worsening, the mean over probes of after - before in the
    direction of `worse`, lies above `tolerance`; it passes where the whole interval lies at or below it; otherwise
    there are too few probes to tell. A gate leaves the models as they were.

    `look` reads its rows before any gate is measured, so that bad ones are told first; what it read is not read again.
    What `measure` raises is the reason why the gate could not be measured, and the others are measured all the same.
    """

    worse: ClassVar[str] = "higher"
    """Which numbers are worse: `higher` or `lower`."""
    unit: ClassVar[str] = ""
    """What the numbers are in."""
    covers: ClassVar[tuple[str, ...]] = ()
    """What of the checklist of an evaluation it covers (`core.families.CHECKLIST`)."""
    exact: ClassVar[bool] = False
    """The probes are all that there is, and no sample: their mean has no uncertainty."""
    data: str | None = None
    """Rows to probe with: a file, a folder or a hub id."""
    tolerance: float = 0.0
    """Largest worsening that may be released."""

    def check(self) -> None:
        self.within("tolerance", 0)

    def look(self, subject: Subject) -> None:
        """Reads the rows that `measure` will, and raises `LuthierError` for those that it could not use."""
        if self.data is not None:
            subject.rows(self.data)

    def measure(self, subject: Subject) -> Probes:
        """Returns the numbers of both models on the same probes."""
        raise NotImplementedError(f"{type(self).__name__} must define measure")
