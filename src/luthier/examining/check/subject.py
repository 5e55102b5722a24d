"""The subject of a check: a model before and after fine-tuning, with what gates need to probe it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from luthier import data, evaluating
from luthier.core.contracts.examination import Batch
from luthier.core.contracts.example import Example, Examples
from luthier.core.contracts.gate import Subject
from luthier.core.errors import LuthierError
from luthier.examining.pair import batches_of, pair_of


@dataclass(frozen=True)
class Means:
    """How rows are read and answered."""

    base: nn.Module
    processor: Any
    task: str
    batch: int
    max_length: int
    limit: int | None
    seed: int
    held: dict[tuple[str, str], Any] = field(default_factory=dict)
    """What was read, by the way it was read and the source."""

    def rows(self, source: str) -> Sequence[Mapping[str, Any]]:
        """Returns the rows of a source as their columns; bad ones raise."""

        def read() -> Sequence[Mapping[str, Any]]:
            table = data.read(source, None, self.limit, self.seed)
            if table.bad or not table.rows:
                reason = f"row {table.bad[0][0]}: {table.bad[0][1]}" if table.bad else "it holds no row"
                raise LuthierError(f"{source} cannot be used: {reason}.")
            return self._drawn([row for _, row in table.rows])

        return self._once("rows", source, read)

    def prompts(self, source: str) -> Sequence[Example]:
        """Returns the rows of a source, each up to where an answer is to be written."""
        return self._once("prompts", source, lambda: data.load_prompts(source, limit=self.limit, seed=self.seed))

    def examples(self, source: str) -> Examples:
        """Returns the rows of a source for the subject's task."""

        def read() -> Examples:
            return data.load(source, task=self.task, limit=self.limit, seed=self.seed)

        return self._once("examples", source, read)

    def _once(self, way: str, source: str, read: Callable[[], Any]) -> Any:
        """What is read of a source, by each way once: gates look at their rows before any is measured."""
        if (way, source) not in self.held:
            self.held[way, source] = read()
        return self.held[way, source]

    def _drawn(self, rows: Sequence[Any]) -> Sequence[Any]:
        """As many rows as are wanted, in their order; those that `data.load` takes of as many."""
        if self.limit is None or self.limit >= len(rows):
            return rows
        return [rows[at] for at in sorted(random.Random(self.seed).sample(range(len(rows)), self.limit))]

    def labelled(self, source: str) -> list[Batch]:
        """Returns the rows of a source with their answers or classes, as batches."""
        return self.batched(self.examples(source))

    def batches(self, examples: Sequence[Example]) -> list[Batch]:
        """Examples as batches."""
        return self.batched(Examples(list(examples), "messages", "probes", task=self.task))

    def batched(self, examples: Examples) -> list[Batch]:
        """Returns a set as batches of the model's arguments."""
        sets = batches_of({"rows": examples}, self.base, self.processor, self.task, self.batch, self.max_length)
        return sets["rows"]

    def write(self, model: nn.Module, prompts: Sequence[Example], max_new_tokens: int) -> list[str]:
        """Returns the answers that a model writes, greedily."""
        return evaluating.generate(model, self.processor, prompts, max_new_tokens=max_new_tokens, batch=self.batch)

    def score(self, model: nn.Module, source: str, max_new_tokens: int) -> list[float]:
        """Returns the score of a model's answer to each row."""
        found = evaluating.evaluate(
            model,
            self.processor,
            self.examples(source),
            batch=self.batch,
            max_new_tokens=max_new_tokens,
            progress=False,
        )
        if any("score" not in each for each in found.predictions):
            raise LuthierError(f"the rows of {source} carry numbers, of which no single one has a score.")
        return [each["score"] for each in found.predictions]


def subject_of(means: Means, target: Path, *, force: bool = False) -> Subject:
    """Returns the bare base of `means`, and the adapter or fine-tuned model in the folder `target`."""
    pair = pair_of(means.base, target, {}, means.task, Console(stderr=True, quiet=True), force=force)
    return Subject(
        before=pair.before,
        after=pair.after,
        changes=pair.changes,
        rows=means.rows,
        prompts=means.prompts,
        batches=means.batches,
        labelled=means.labelled,
        write=means.write,
        score=means.score,
        examples=means.examples,
    )
