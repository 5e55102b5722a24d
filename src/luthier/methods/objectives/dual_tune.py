"""DualTune: one adapter learns which tool to call, others what to call it with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.core.contracts.objective import Feature, Objective
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.core.contracts.objective import Rows
    from luthier.data.calls import CallFormat

IGNORED = -100


@dataclass(frozen=True)
class DualTune(Objective):
    """L = - mean over M of log p(token | before), M the tokens of the choice of a tool, or those of its arguments

    Two masks divide an answer's tokens: a tool has those behind its name up to the end of its call, the choice all
    others (the name with what opens a call, text without a call, what stands between calls, and the end of the turn).
    So they are disjoint and cover the answer. Whose a token is follows from the text before it, by the chat template,
    which is measured; decoding asks the same function after every token, and changes the adapter there
    (`luthier generate --arguments TOOL=ADAPTER`). Train the choice once (part = selection) and the arguments of each
    tool (part = arguments, tool = its name) as adapters of their own.

    Rows that call no tool are the choice's, so without calls it is fine-tuning. Rebuilt from the description of the
    method (a selection adapter with its loss on tool names, an argument adapter for each tool with its loss on
    arguments); its authors' code was not read.
    """

    paper = "DualTune: Kadekodi et al. 2025, arXiv 2510.00229 (rebuilt from its description)"
    depends: ClassVar = {"tool": ("part", "arguments")}

    part: Literal["selection", "arguments"] = "selection"
    """What is learned: the choice of a tool, or the arguments."""
    tool: str | None = None
    """The tool whose arguments are learned. Default: those of all tools, by one adapter."""

    def rows(self, rows):
        if rows.examples.task != "causal-lm":
            raise LuthierError(f"dual_tune learns calls of tools, and {rows.examples.task} rows have none.")
        found = [feature for feature in map(self.masked(rows), rows.features) if learned(feature)]
        if not found:
            tools = ", ".join(sorted(called(rows))) or "none"
            raise LuthierError(
                f"no row of {rows.examples.source} has a token of {self.tool or 'the'} {self.part} to learn; the tools "
                f"that its rows call are: {tools}."
            )
        return found

    def masked(self, rows: Rows):
        """Returns a function that takes the labels of the other part out of a feature."""
        from luthier.data.calls import CallFormat

        if not called(rows):
            return lambda feature: feature if self.part == "selection" else feature | {"labels": []}
        asking = next(each for each in rows.examples.rows if any(calls(each.messages or [])))
        format = CallFormat.of(rows.processor, asking)
        return lambda feature: self.part_of(feature, format, rows.processor)

    def part_of(self, feature: Feature, format: CallFormat, tokenizer) -> Feature:
        """Returns a feature with the labels of this part alone."""
        labels = [IGNORED] * len(feature["labels"])
        for start, end in answers(feature["labels"]):
            owners = format.owners(feature["input_ids"][start:end], tokenizer)
            for place, owner in enumerate(owners, start):
                if self.wants(owner):
                    labels[place] = feature["labels"][place]
        return feature | {"labels": labels}

    def wants(self, owner: str | None) -> bool:
        """Returns whether a token of this owner (None: the choice) is learned."""
        return owner is None if self.part == "selection" else owner is not None and self.tool in (None, owner)

    def loss(self, model, batch):
        from luthier.methods.objectives._cross_entropy import causal_loss

        return causal_loss(model, batch)


def learned(feature: Feature) -> bool:
    """Returns whether a token of the row is in the loss."""
    return any(label != IGNORED for label in feature["labels"][1:])


def answers(labels: list[int]) -> Iterator[tuple[int, int]]:
    """Yields the places [start, end) of each run of labels in the loss."""
    start = None
    for place, label in enumerate([*labels, IGNORED]):
        if label != IGNORED and start is None:
            start = place
        elif label == IGNORED and start is not None:
            yield start, place
            start = None


def calls(messages: list) -> Iterator[str]:
    """Yields the names of the tools that a conversation calls."""
    from luthier.data.messages import calls_of

    for message in messages:
        yield from (call["name"] for call in calls_of(message))


def called(rows: Rows) -> set[str]:
    """Returns the names of the tools that rows call."""
    return {name for each in rows.examples.rows for name in calls(each.messages or [])}
