"""Figures that take a pass of their own over the rows held out: answers in a context, and which text is nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.example import Example, Examples
from luthier.core.contracts.objective import ALSO, EMBEDDING, Feature
from luthier.core.lazy import kept
from luthier.core.numerics import extracted, near
from luthier.engine.outputs import Reading, places_of, task_names, vectors_of
from luthier.models import positions
from luthier.training.spec import Run

PLACES = "question-answering"


def told_of(examples: Examples) -> tuple[tuple[str, ...], ...]:
    """Returns the names of the figures of these rows, those that are drawn together side by side."""
    if examples.task == PLACES:
        return (("f1", "exact_match"),)
    if examples.task != EMBEDDING:
        return ()
    negatives = (near.NEARER,) if any(len(row.texts or ()) > 2 for row in examples.rows) else ()
    return ((*near.NAMES, *negatives),)


def encoded_of(held: Examples, features: Sequence[Feature]) -> Examples:
    """Returns the rows of these features: `skip_bad_rows` leaves others out."""
    numbers = {feature["row"] for feature in features}
    return held.keep(kept(held.rows, (place for place, row in enumerate(held.rows) if row.row in numbers)))


@dataclass(frozen=True)
class Apart:
    """Measures rows that are held out as `luthier evaluate` does; every process measures all of them."""

    model: Any
    processor: Any
    held: Examples
    features: Sequence[Feature]
    """Those of the rows, behind each of which stand the texts that belong to it."""
    batch: int
    most: int
    """The most tokens of a row."""

    def figures(self) -> dict[str, float]:
        """Returns what `told_of` names."""
        return FIGURES[self.held.task](self)

    def reading(self, rows: Sequence[Example]) -> Reading:
        """Returns what a pass over `rows` needs, one for each feature."""
        return Reading(self.model, self.processor, self.held.task, self.batch, task_names(self.model, rows))


def apart_of(run: Run, model: Any, processor: Any, held: Examples, features: Sequence[Feature]) -> Apart:
    """Returns what measures the rows of these features in the evaluations of a run."""
    bounds = (run.training.max_length, positions(model))
    most = min(each for each in bounds if each is not None)
    return Apart(model, processor, encoded_of(held, features), features, run.training.batch, most)


def in_context(apart: Apart) -> dict[str, float]:
    """Returns the means of SQuAD's F1 and exact match; none is said to be the answer where some row has none."""
    rows = apart.held.rows
    found = places_of(apart.reading(rows), apart.held, apart.most, any(not row.spans for row in rows))
    right = [[text for _, text in row.spans or ()] for row in rows]
    scores = [extracted.against(places[0].text, texts) for places, texts in zip(found, right, strict=True)]
    exact, f1 = (sum(each) / len(scores) for each in zip(*scores, strict=True))
    return {"f1": f1, "exact_match": exact}


def nearest(apart: Apart) -> dict[str, float]:
    """Returns how near the text is that belongs to each, among those of all rows."""
    rows = apart.held.rows
    features = [each for row in apart.features for each in (row, *row[ALSO])]
    of_each = [row for row in rows for _ in row.texts or ()]
    vectors = vectors_of(apart.reading(of_each), features)
    return near.figures(near.ranks(vectors, [row.texts or () for row in rows]))


FIGURES: Mapping[str, Callable[[Apart], dict[str, float]]] = {PLACES: in_context, EMBEDDING: nearest}
"""How the rows of a task are measured."""
