"""Episodes: demonstrations of a domain, and other rows of it to answer."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier import data
from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.core.numerics.resampling import mean_interval
from luthier.training.meta.spec import MetaRun
from luthier.training.steps import Steps


@dataclass(frozen=True)
class Domain:
    """One domain: its rows, and what encodes and batches them."""

    source: str
    rows: Examples
    features: Sequence[dict[str, Any]]

    def drawn(self, shots: int, asked: int, key: str) -> tuple[list[int], list[int]]:
        """Returns the places of demonstrations, and of other rows, of the episode of this key."""
        places = random.Random(f"{key} {self.rows.fingerprint}").sample(
            range(len(self.rows)), min(shots + asked, len(self.rows))
        )
        return places[:shots], places[shots:]


def read_domains(spec: MetaRun, sources: Sequence[str], processor: Any) -> list[Domain]:
    """Reads and encodes domains; raises for those with too few rows, or without answers to learn."""
    found = []
    for source in sources:
        rows = data.load(source, task="causal-lm", seed=spec.seed)
        if any(row.messages is None for row in rows.rows):
            raise LuthierError(
                f"{source} has {rows.layout} rows, which hold no prompt and answer: nothing there is a demonstration."
            )
        if len(rows) <= spec.shots:
            raise LuthierError(
                f"{source} has {len(rows)} rows, and an episode takes {spec.shots} demonstrations and at least one row "
                "to answer; give more rows, or fewer shots."
            )
        found.append(Domain(source, rows, data.encode_all(rows, processor, max_length=spec.max_length)))
    return found


def in_context(rows: Examples, shown: Sequence[int], asked: Sequence[int]) -> Examples:
    """Returns the rows to answer with the demonstrations before each of them, out of the loss."""
    before = [turn for place in shown for turn in rows.rows[place].messages or []]

    def longer(row: Example) -> Example:
        turns = row.messages or []
        return dataclasses.replace(
            row,
            messages=[*before, *turns],
            context=len(before) + row.context,
            masked=tuple(range(len(before))) + tuple(len(before) + i for i in row.masked),
        )

    return rows.keep([longer(rows.rows[place]) for place in asked])


def interval(values: np.ndarray, seed: int) -> dict[str, float]:
    """Returns the mean `loss` of episodes [n], with `low` and `high` of its 95% interval."""
    low, high = mean_interval(values, seed)
    return {"loss": float(values.mean()), "low": low, "high": high}


def steps_of(spec: MetaRun) -> Steps:
    """Returns the outer steps of a meta-training."""
    return Steps(spec.steps, spec.save_every, f"lr ({spec.lr:g}) or inner_lr")
