"""Selections at work: the best rows of a pool, or rows with shots before their prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.example import Example, Examples
from luthier.core.contracts.selection import Pool, Selection
from luthier.core.errors import LuthierError
from luthier.data.texts import full_text

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Chosen:
    """What a selection took."""

    examples: Examples
    """The rows taken, in the order of the source."""
    places: list[int]
    """Their places in the pool, the best first."""
    scores: np.ndarray
    """Of every row of the pool."""
    redundant: list[int] = field(default_factory=list)
    """Places of rows that only repeat others."""


def choose(selection: Selection, pool: Pool, rows: int) -> Chosen:
    """Returns the `rows` rows of the pool that the selection takes: as a rule those that score highest.

    Raises `LuthierError` where the pool has fewer, the selection needs target rows and there are none, or a row has no
    words to go by.
    """
    if not 1 <= rows <= len(pool.examples):
        raise LuthierError(f"cannot take {rows:,} of the {len(pool.examples):,} rows of {pool.examples.source}.")
    if not selection.takes():
        raise LuthierError(
            f"{selection.name()} takes no rows to learn from; choose another selection (luthier list selections)."
        )
    if selection.targeted and pool.target is None:
        raise LuthierError(f"{selection.name()} takes rows that are near those of a task; name them (target).")
    for part in (pool.examples, pool.target):
        if part is not None and selection.targeted:
            full_text(part.rows[0])
    taken = selection.take(pool, rows)
    kept = pool.examples.keep([pool.examples.rows[i] for i in sorted(taken.places)])
    return Chosen(kept, taken.places, taken.scores, taken.redundant)


def with_shots(selection: Selection, queries: Examples, pool: Pool, count: int) -> Examples:
    """Returns the queries, each with `count` rows of the pool before its prompt, the nearest one last.

    A shot is the whole conversation of its row except a system message; the query's own opens all. Shots are not in
    the loss. Raises `LuthierError` for rows that are no prompts with answers, and for fewer rows than shots.
    """
    if not 1 <= count < len(pool.examples):
        raise LuthierError(
            f"cannot show {count} of the {len(pool.examples):,} rows of {pool.examples.source} before each prompt."
        )
    for part in (queries, pool.examples):
        bad = next((row.row for row in part.rows if row.messages is None), None)
        if bad is not None:
            raise LuthierError(f"row {bad} of {part.source} is not a prompt with an answer; shots are such rows.")
        seen = next((row.row for row in part.rows if row.images), None)
        if seen is not None:
            raise LuthierError(f"row {seen} of {part.source} has pictures; shots are rows of text alone.")
    found = selection.nearest(queries.rows, pool, count)
    rows = pool.examples.rows
    return queries.keep(
        [_shown(q, [rows[i] for i in reversed(near)]) for q, near in zip(queries.rows, found, strict=True)]
    )


def _shown(query: Example, shots: Iterable[Example]) -> Example:
    own = query.messages or []
    head = own[:1] if own and own[0]["role"] == "system" else []
    before = [m for shot in shots for m in _alike(shot, query).messages or [] if m["role"] != "system"]
    masked = tuple(i + len(before) for i in query.masked)
    turns, context = [*head, *before, *own[len(head) :]], query.context + len(before)
    return dataclasses.replace(query, messages=turns, context=context, masked=masked)


def _alike(shot: Example, query: Example) -> Example:
    """The shot, unless its answer stands on tools or documents that the query's prompt does not show."""
    for name in ("tools", "documents"):
        if getattr(shot, name) not in (None, getattr(query, name)):
            raise LuthierError(
                f"row {shot.row} has {name} of its own, which it cannot bring into another row's prompt."
            )
    return shot


def as_row(example: Example) -> dict[str, Any]:
    """A conversation as a row whose leading messages are not learned (`prompt`, `completion`)."""
    turns = [m | {"weight": 0} if i in example.masked else m for i, m in enumerate(example.messages or [])]
    beside = {"tools": example.tools, "documents": example.documents, "chat_template_kwargs": example.template}
    first = next(i for i, m in enumerate(turns) if i >= example.context and m["role"] == "assistant")
    found = {"prompt": turns[:first], "completion": turns[first:]}
    return found | {name: value for name, value in beside.items() if value}


def plot_scores(chosen: Chosen, title: str, path: Path) -> None:
    """A picture of the scores: all rows, and those taken."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(7, 4))
    bins = np.histogram_bin_edges(chosen.scores, bins=min(60, max(10, len(chosen.scores) // 5))).tolist()
    axes.hist(chosen.scores, bins, color="0.75", label=f"all {len(chosen.scores):,} rows")
    axes.hist(chosen.scores[chosen.places], bins, color="tab:blue", label=f"{len(chosen.places):,} taken")
    axes.set(title=title, xlabel="score", ylabel="rows")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
