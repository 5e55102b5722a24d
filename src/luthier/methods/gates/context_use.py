"""Context use: a model has to answer from the text that it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from luthier.core.contracts.examination import Batch
from luthier.core.contracts.example import Example
from luthier.core.contracts.gate import Gate
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import exact
from luthier.core.sites.answers import answers, rows_of

COLUMNS = ("question", "context", "answer")


@dataclass(frozen=True)
class ContextUse(Gate):
    """used = [p(answer | context, question) ≥ factor · p(answer | another row's context, question)]; worse: fewer rows

    Fine-tuning on bare answers teaches a model to answer from memory and to read past what a search put into its
    prompt. Rows are `question`, `context`, `answer`; each context is swapped with the next row's that differs, and a
    row counts where its own context makes its answer at least `factor` times as likely as the wrong one. A model that
    reads nothing gives both the same probability. The paper compares answers with and without retrieval (`against`
    none); the swap is ours, because leaving the context out changes the length and the form of the prompt as well.
    """

    paper = "Barnett et al. 2024, Fine-Tuning or Fine-Failing?, arXiv 2406.11201"
    worse: ClassVar[str] = "lower"
    unit: ClassVar[str] = "share of rows"
    covers: ClassVar[tuple[str, ...]] = ("context",)

    tolerance: float = 0.1
    """Largest fall of the share of rows that may be released."""
    factor: float = 2.0
    """How many times as likely the right context has to make the answer."""
    against: Literal["another", "none"] = "another"
    """What the right context is held against: another row's, or none, the question alone."""

    def check(self):
        self.within("tolerance", 0, 1)
        self.above("factor", 1)

    def look(self, subject):
        variants(subject.rows(self.data or ""), swap=self.against == "another")

    def measure(self, subject):
        own, others = variants(subject.rows(self.data or ""), swap=self.against == "another")
        batches = subject.batches(own), subject.batches(others)
        return subject.compared(lambda model: self.used(model, *batches))

    def used(self, model: nn.Module, own: Sequence[Batch], others: Sequence[Batch]) -> Tensor:
        """[rows]: 1 where the row's own context makes its answer `factor` times as likely."""
        right, wrong = (answers(model, each).by_row(rows_of(each))[:, 0] for each in (own, others))
        return exact(wrong - right >= math.log(self.factor))


def variants(rows: Sequence[Mapping[str, Any]], *, swap: bool = True) -> tuple[list[Example], list[Example]]:
    """Returns the rows with their own contexts, and with another's (`swap`) or none."""
    for number, row in enumerate(rows, 1):
        lacking = [name for name in COLUMNS if not str(row.get(name) or "").strip()]
        if lacking:
            raise LuthierError(
                f"row {number} has no {' and no '.join(lacking)}; context_use reads rows of {', '.join(COLUMNS)}."
            )
    contexts = [str(row["context"]) for row in rows]
    if swap and len(set(contexts)) < 2:
        raise LuthierError("context_use swaps contexts between rows, and all rows have the same one; give others.")
    own = [example(n, row, contexts[n]) for n, row in enumerate(rows)]
    return own, [example(n, row, other(contexts, n) if swap else "") for n, row in enumerate(rows)]


def other(contexts: Sequence[str], at: int) -> str:
    """Returns the next context that differs from the one `at`."""
    turned = (*contexts[at + 1 :], *contexts[:at])
    return next(each for each in turned if each != contexts[at])


def example(number: int, row: Mapping[str, Any], context: str) -> Example:
    """Returns the question below a context, if there is one, and the answer."""
    asked = {"role": "user", "content": f"{context}\n\n{row['question']}" if context else str(row["question"])}
    return Example(row=number + 1, messages=[asked, {"role": "assistant", "content": str(row["answer"])}], context=1)
