"""Errors of words and characters in what was written down of a sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

COUNTS = ("words", "word_errors", "characters", "character_errors", "plain_words", "plain_word_errors")
"""What is counted of a row: of the right text, and of what was said instead."""


NAMES = ("wer", "cer", "wer_plain", "word_accuracy")


def distance(said: Sequence[Any], right: Sequence[Any]) -> int:
    """Returns the fewest insertions, deletions and substitutions that make one sequence of the other (Levenshtein)."""
    above = list(range(len(right) + 1))
    for i, one in enumerate(said, 1):
        row = [i]
        for j, other in enumerate(right, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
        above = row
    return above[-1]


def plain(text: str) -> str:
    """Returns a text without case, punctuation and what stands in brackets, as Whisper's basic normaliser has it."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()(text)


def counted(said: str, right: str) -> list[int]:
    """Returns `COUNTS` of a row; words stand between white space, and that at the ends does not count."""
    found: list[int] = []
    for a, b in (
        (said.split(), right.split()),
        (said.strip(), right.strip()),
        (plain(said).split(), plain(right).split()),
    ):
        found += [len(b), distance(a, b)]
    return found


def figures(counts: np.ndarray) -> dict[str, float]:
    """Returns `wer` and `cer`, errors over the words and characters of all right texts [rows, counts], which may pass
    1; `wer_plain`, the same without case and punctuation; `word_accuracy`, 1 - wer."""
    sums = counts.sum(0)
    wer, cer, bare = (float(sums[2 * i + 1] / sums[2 * i]) if sums[2 * i] else float("nan") for i in range(3))
    return dict(zip(NAMES, (wer, cer, bare, 1 - wer), strict=True))
