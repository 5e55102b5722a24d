"""Many-shot in-context fine-tuning: rows of a task follow one another, and every answer is learned."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.core.contracts.objective import Objective
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.data import Example


@dataclass(frozen=True)
class ManyICL(Objective):
    """L = - Σ_k log p(y_k | x_1, y_1, …, x_k), k = 1 … K: the sum of the losses of 0 to K-1 shots

    K rows of one task (the column `task`; without it, all rows are of one) make a conversation, in the very words in
    which shots stand before a prompt. Which rows meet is drawn once, by the run's seed; a row is in one pack, and no
    pack sees another. A pack ends before `max_length`. A system message that opens them all is said once.
    """

    paper = "He et al. 2025, arXiv 2506.11103"
    neutral: ClassVar = {"shots": 1}
    columns = ("task",)

    shots: int = 8
    """K, rows of a pack."""

    def check(self) -> None:
        self.within("shots", 1)

    def rows(self, rows):
        if self.shots == 1:
            return rows.features
        if rows.features and "input_ids" not in rows.features[0]:
            raise LuthierError(f"many_icl packs texts, and {rows.examples.task} rows are none.")
        lengths = {feature["row"]: len(feature["input_ids"]) for feature in rows.features}
        groups: dict[Any, list[Example]] = {}
        for example in rows.examples.rows:
            if example.row in lengths:
                groups.setdefault((example.meta.get("task"), system_of(example), beside(example)), []).append(example)
        made = []
        for group in groups.values():
            random.Random(rows.seed).shuffle(group)
            made += [packed(pack) for pack in packs(group, lengths, self.shots, rows.max_length)]
        return rows.encode(rows.examples.keep(made))

    def loss(self, model, batch):
        from luthier.methods.objectives._cross_entropy import causal_loss

        return causal_loss(model, batch)


def packs(
    group: Iterable[Example], lengths: Mapping[int, int], shots: int, max_length: int
) -> Iterable[Sequence[Example]]:
    """Yields the examples by `shots` at most, and by no more tokens in all than `max_length`."""
    pack: list[Example] = []
    used = 0
    for example in group:
        if pack and (len(pack) == shots or used + lengths[example.row] > max_length):
            yield pack
            pack, used = [], 0
        pack.append(example)
        used += lengths[example.row]
    if pack:
        yield pack


def system_of(example: Example) -> str | None:
    """Returns the system message that a conversation opens with; raises for rows that cannot be packed."""
    turns = example.messages
    if turns is None or any(m["role"] == "assistant" for m in turns[: example.context]):
        raise LuthierError(
            f"row {example.row} is not a prompt with its answers, all of them to be learned; many_icl packs such rows."
        )
    return turns[0].get("content") if turns[0]["role"] == "system" else None


def beside(example: Example) -> str:
    """Returns what stands in the prompt beside the turns; only rows that share it are packed."""
    return json.dumps([example.tools, example.documents, example.template], sort_keys=True, default=str)


def packed(pack: Sequence[Example]) -> Example:
    """Returns the conversations one after another, as one."""
    first, *others = pack
    turns, masked = list(first.messages or []), list(first.masked)
    for example in others:
        own = example.messages or []
        said = int(own[0]["role"] == "system")
        masked += [i + len(turns) - said for i in example.masked]
        turns += own[said:]
    context = 0 if others else first.context
    return dataclasses.replace(first, messages=turns, context=context, masked=tuple(masked))
