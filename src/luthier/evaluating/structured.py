"""How rows are measured whose answer is no one label: several classes, tags of words, places in a text, vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.core.numerics import extracted, many, near, tags
from luthier.engine.outputs import logits_of, places_of, tags_of, vectors_of
from luthier.evaluating.job import Found, Job, bar

if TYPE_CHECKING:
    import numpy as np


def with_classes(job: Job) -> Found:
    """Texts that may have several classes: those of a probability of at least 0.5 are compared with the right ones."""
    import numpy as np

    names = job.classes()
    features = job.encoded(names)
    with bar(job, len(features)) as done:
        logits, loss = logits_of(job.reading(done), features)
    said, there = many.chosen(logits), np.array([feature["classes"] for feature in features], dtype=bool)
    listed = [
        {"row": row, "prediction": _named(a, names), "answer": _named(b, names), "score": float((a == b).all())}
        for row, a, b in zip(job.numbers, said, there, strict=True)
    ]
    pairs: Any = np.stack([said, there], 1)
    return Found(
        pairs,
        pairs,
        None,
        lambda left, _: many.figures(left[:, 0], left[:, 1]),
        loss,
        listed=listed,
        classes=many.by_class(said, there, names),
    )


def _named(places: np.ndarray, names: list[str]) -> list[str]:
    return [name for name, there in zip(names, places, strict=True) if there]


def with_tags(job: Job) -> Found:
    """Tagged words: entities where tags mark them (IOB2 and the like), else words."""
    names = job.classes()
    features = job.encoded(names)
    with bar(job, len(features)) as done:
        found, loss = tags_of(job.reading(done), features)
    said = [[names[i] for i in each.argmax(-1)] for each in found]
    there = [list(example.labels or ()) for example in job.examples.rows]
    whole = tags.marked(names)
    counts: Any = tags.counted(said, there, whole)
    listed = [
        {"row": row, "prediction": a, "answer": b, "score": float(a == b)}
        for row, a, b in zip(job.numbers, said, there, strict=True)
    ]
    if whole:
        by_type = tags.by_type(said, there)
    else:
        from luthier.core.numerics.agreement import by_class

        by_type = by_class([tag for row in said for tag in row], [tag for row in there for tag in row], names)
    return Found(counts, counts, None, lambda left, _: tags.figures(left, whole), loss, listed=listed, classes=by_type)


def with_places(job: Job) -> Found:
    """Answers that stand in a context; that there is none may be said where some row has none."""
    import numpy as np

    rows = job.examples.rows
    with bar(job, len(rows)) as done:
        found = places_of(job.reading(done), job.examples, job.longest, any(not row.spans for row in rows))
    said = [each[0] for each in found]
    there = [[text for _, text in row.spans or ()] for row in rows]
    scores: Any = np.array([extracted.against(a.text, b) for a, b in zip(said, there, strict=True)])
    listed = [
        {"row": row, "prediction": a.text, "answer": b, "confidence": a.probability, "score": float(score[1])}
        for row, a, b, score in zip(job.numbers, said, there, scores, strict=True)
    ]
    return Found(
        scores,
        scores,
        None,
        lambda left, _: {"f1": float(left[:, 1].mean()), "exact_match": float(left[:, 0].mean())},
        listed=listed,
    )


def with_vectors(job: Job) -> Found:
    """Texts to embed: whether what belongs to one is the nearest of all."""
    rows = [example.texts or () for example in job.examples.rows]
    if any(len(each) < 2 for each in rows):
        raise LuthierError(
            f"{job.examples.source} has texts without one that belongs to each; expected anchor and positive."
        )
    features = [each for row in job.encoded() for each in (row, *row["also"])]
    with bar(job, len(features)) as done:
        reading = job.reading(done)
        if reading.tasks is not None:
            raise LuthierError("an adapter that goes by tasks is not evaluated on texts to embed.")
        vectors = vectors_of(reading, features)
    found: Any = near.ranks(vectors, rows)
    listed = [
        {"row": row, "rank": int(rank), "score": float(rank == 1)}
        for row, (rank, _) in zip(job.numbers, found, strict=True)
    ]
    return Found(found, found, None, lambda left, _: near.figures(left), listed=listed)
