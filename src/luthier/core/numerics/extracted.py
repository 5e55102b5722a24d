"""Figures of extracted answers: exact match and F1 of words, as SQuAD's evaluation defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
MARKS = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """Returns the text in lower case, without punctuation, English articles and white space to spare (Rajpurkar et al.
    2016, arXiv 1606.05250)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(MARKS)).split())


def exact(said: str, answer: str) -> float:
    """Returns 1 where both are the same plain text."""
    return float(plain(said) == plain(answer))


def f1(said: str, answer: str) -> float:
    """Returns the F1 of the plain words that both have in common; where one side has none, whether both have none."""
    a, b = plain(said).split(), plain(answer).split()
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def against(said: str, answers: Sequence[str]) -> tuple[float, float]:
    """Returns (exact match, F1), each against the answer that fits best; no answers: nothing is to be said."""
    wanted = [answer for answer in answers if plain(answer)] or [""]
    return max(exact(said, each) for each in wanted), max(f1(said, each) for each in wanted)
