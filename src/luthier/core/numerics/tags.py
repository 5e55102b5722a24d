"""Figures of tagged words: entities as conlleval and seqeval count them, and words for tags without a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Entity = tuple[str, int, int]
"""An entity as (type, first word, last word)."""
OUTSIDE = "O"
COUNTS = ("right", "predicted", "there", "right_words", "words")


def entities(tags: Sequence[str]) -> set[Entity]:
    """Returns the entities of a row of IOB, IOB2 or IOBES tags.

    A tag goes on with the entity before it where it is I or E of the same type, behind a B or an I; any other tag but O
    begins one (conlleval's reading, seqeval's default).
    """
    found: list[Entity] = []
    before = (OUTSIDE, "")
    for place, tag in enumerate(tags):
        prefix, _, kind = (OUTSIDE, "", "") if tag == OUTSIDE else tag.partition("-")
        if prefix in ("I", "E") and before[0] in ("B", "I") and before[1] == kind:
            found[-1] = (kind, found[-1][1], place)
        elif prefix != OUTSIDE:
            found.append((kind, place, place))
        before = (prefix, kind)
    return set(found)


def marked(names: Sequence[str]) -> bool:
    """Returns whether tags mark entities: all but O are `B-TYPE`, `I-TYPE`, `E-TYPE` or `S-TYPE`."""
    others = [name for name in names if name != OUTSIDE]
    return bool(others) and all(name[:2] in ("B-", "I-", "E-", "S-") for name in others)


def counted(predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]], whole: bool) -> np.ndarray:
    """Returns `COUNTS` of each row, [rows, 5]; entities are 0 where tags mark none (`whole`)."""
    import numpy as np

    found = []
    for said, there in zip(predicted, truth, strict=True):
        a, b = (entities(said), entities(there)) if whole else (set(), set())
        right = sum(p == t for p, t in zip(said, there, strict=True))
        found.append([len(a & b), len(a), len(b), right, len(there)])
    return np.array(found, dtype=float).reshape(-1, len(COUNTS))


def figures(counts: np.ndarray, whole: bool) -> dict[str, float]:
    """Returns `f1`, `precision` and `recall` of entities where there are such, and `accuracy` of words."""
    right, said, there, right_words, words = counts.sum(0).tolist()
    accuracy = {"accuracy": right_words / words if words else 0.0}
    return {**of_counts(right, said, there), **accuracy} if whole else accuracy


def of_counts(right: float, said: float, there: float) -> dict[str, float]:
    """Returns `f1`, `precision` and `recall`; 0 where undefined."""
    precision, recall = right / said if said else 0.0, right / there if there else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}


def by_type(predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Returns the figures of each type of entity, with how many there are (`rows`) and were predicted."""
    said = {(row, *each) for row, tags in enumerate(predicted) for each in entities(tags)}
    there = {(row, *each) for row, tags in enumerate(truth) for each in entities(tags)}
    found = {}
    for kind in sorted({each[1] for each in said | there}):
        a, b = ({each for each in side if each[1] == kind} for side in (said, there))
        found[kind] = of_counts(len(a & b), len(a), len(b)) | {"rows": len(b), "predicted": len(a)}
    return found
