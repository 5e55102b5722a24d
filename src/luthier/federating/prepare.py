"""Before the weights: settings that fit each other, rows read and dealt, and the table of who takes part."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from luthier import data
from luthier.core.contracts.aggregation import Aggregation
from luthier.core.errors import LuthierError, near
from luthier.federating.partition import Parts, partition
from luthier.federating.spec import Federation, check_run
from luthier.training.folder import tokens_of
from luthier.training.prepare import Prepared, prepare
from luthier.training.spec import Run


@dataclass(frozen=True)
class Plan:
    """A federated run whose rows are dealt."""

    run: Run
    """What each client trains, except its rows, rank and seed."""
    method: Aggregation
    federation: Federation
    prepared: Prepared
    parts: Parts
    """The places of each client's rows in `prepared.train`."""

    @property
    def clients(self) -> int:
        """How many there are."""
        return len(self.parts)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each."""
        return tuple(self.federation.rank_of(client, self.run.form) for client in range(self.clients))

    @property
    def rows(self) -> list[int]:
        """How many rows each has."""
        return [len(part) for part in self.parts]

    @property
    def title(self) -> str:
        """For pictures and the screen."""
        return (
            f"{self.run.model}, {self.run.data}: {self.method.name()}, {self.clients} clients ({self.federation.split})"
        )

    def taking_part(self, number: int) -> list[int]:
        """Returns the clients of round `number` (from 1)."""
        count = max(1, round(self.federation.fraction * self.clients))
        draw = random.Random(f"{self.run.training.seed} {number}")
        return sorted(draw.sample(range(self.clients), count))

    def to_dict(self) -> dict[str, Any]:
        """Returns what federation.json keeps."""
        held = self.prepared.held
        return {
            "run": self.run.to_dict(),
            "federation": self.federation.to_dict(),
            "aggregation": {"name": self.method.name(), "settings": self.method.to_dict()},
            "data": {
                "rows": self.rows,
                "fingerprint": self.prepared.examples.fingerprint,
                "eval_rows": len(self.prepared.evaluation),
                "eval_fingerprint": held.fingerprint if held else None,
                "tokens": tokens_of(self.prepared),
            },
        }


def planned(run: Run, method: Aggregation, federation: Federation) -> Plan:
    """Reads, encodes and deals the rows; whatever does not fit raises here, before any weights are loaded."""
    check_run(run)
    some = federation.clients or len(federation.numbers()) or 1
    method.check_ranks([federation.rank_of(client, run.form) for client in range(some)])
    prepared = prepare(run, (federation.column,))
    parts = partition(federation, kinds(run, prepared, federation), run.training.seed)
    plan = Plan(run, method, federation, prepared, parts)
    method.check_ranks(plan.ranks)
    return plan


def kinds(run: Run, prepared: Prepared, federation: Federation) -> Sequence[Hashable | None]:
    """What rows are divided by: the value of the column, or the class."""
    if federation.column is None:
        labels = prepared.examples.labels
        return [labels[feature["labels"]] if labels else None for feature in prepared.train]
    rows = data.read(run.data, limit=run.limit, seed=run.training.seed).rows
    cells = {number: row.get(federation.column) for number, row in rows}  # of a large file, the column alone
    values = [cells[feature["row"]] for feature in prepared.train]
    if all(value is None for value in values):
        known = sorted({key for _, row in rows for key in row})
        raise LuthierError(
            f"{run.data} has no column {federation.column!r}{near(federation.column, known)} It has: "
            f"{', '.join(known)}."
        )
    return [None if value is None else str(value) for value in values]


def overview(plan: Plan) -> Table:
    """Who takes part, with which rows."""
    unread = plan.prepared.unread
    caption = Text(f"not read: {', '.join(unread)}") if unread else None
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    for name in ("client", "rows", "share", "rank"):
        table.add_column(name, justify="right")
    labels = plan.prepared.examples.labels
    if labels:
        table.add_column("most frequent classes")
    total = sum(map(len, plan.parts))
    for client, (part, rank) in enumerate(zip(plan.parts, plan.ranks, strict=True)):
        cells = [str(client), f"{len(part):,}", f"{len(part) / total:.1%}", str(rank)]
        table.add_row(*cells, *([_classes(plan, part)] if labels else []))
    return table


def _classes(plan: Plan, part: Sequence[int]) -> str:
    labels = plan.prepared.examples.labels or []
    counted = Counter(labels[plan.prepared.train[place]["labels"]] for place in part)
    shown = ", ".join(f"{name} {count / len(part):.0%}" for name, count in counted.most_common(3))
    return f"{shown} of {len(counted)}"
