"""Drift of texts: figures that are compared one by one, and a classifier that tries to tell two sets apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.errors import LuthierError

WORD = re.compile(r"\w+")
FOLDS = 3
"""Parts of the rows in the cross-validation of the classifier."""
SIZE = 3
"""Words of a repeated sequence."""


def repeated(text: str) -> float:
    """Returns the share of sequences of three words that occurred before in the text: 0 for one that never loops."""
    words = WORD.findall(text.lower())
    found = [tuple(words[n : n + SIZE]) for n in range(len(words) - SIZE + 1)]
    return 1 - len(set(found)) / len(found) if found else 0.0


def figures(known: set[str]) -> dict[str, Callable[[str], float]]:
    """Returns what is measured of a text; `known` are the words of the training data."""

    def unknown(text: str) -> float:
        words = WORD.findall(text.lower())
        return sum(word not in known for word in words) / len(words) if words else 0.0

    return {
        "words": lambda text: float(len(WORD.findall(text))),
        "unknown words": unknown,
        "other letters": lambda text: sum(ord(letter) > 127 for letter in text) / max(1, len(text)),
        "digits": lambda text: sum(letter.isdigit() for letter in text) / max(1, len(text)),
        "repetition": repeated,
    }


def words_of(texts: Sequence[str]) -> set[str]:
    """Returns the words of texts, in lower case."""
    return {word for text in texts for word in WORD.findall(text.lower())}


@dataclass(frozen=True)
class Drift:
    """One comparison of what was trained on with what was seen."""

    name: str
    trained: float
    """The mean in the training data; of the classifier, what it reaches between two halves of them (its null)."""
    seen: float
    """The mean of what was logged; of the classifier, its AUC between the two sets: 0.5 where they are alike."""
    p: float
    """The probability of such a difference by chance, adjusted for the number of comparisons (Holm)."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dict(vars(self))


def drifts(trained: Sequence[str], seen: Sequence[str], seed: int = 0, permutations: int = 200) -> list[Drift]:
    """Returns the comparisons of two sets of texts.

    Figures by the two-sample test of Kolmogorov and Smirnov (scipy); content by the area under the ROC curve (AUC) of
    ridge regression over TF-IDF of words (scikit-learn) that tells the sets apart, cross-validated, with its p from
    permuted labels (a classifier two-sample test, Lopez-Paz and Oquab 2017). Raises `LuthierError` without the
    libraries.
    """
    import numpy as np

    try:
        from scipy.stats import ks_2samp
    except ImportError:
        raise LuthierError("monitor needs scipy and scikit-learn: pip install 'luthier[monitor]'") from None
    order = np.random.default_rng(seed).permutation(len(trained))  # a file may be sorted, by topic or by day
    known, compared = ([trained[int(n)] for n in part] for part in np.array_split(order, 2))
    measures = figures(words_of(known))  # of one half, so that the other has words that are not known, too
    found: list[tuple[str, float, float]] = []
    raw: list[float] = []
    for name, measure in measures.items():
        one, two = ([measure(text) for text in texts] for texts in (compared, seen))
        tested: Any = ks_2samp(one, two)
        raw.append(float(tested.pvalue))
        found.append((name, float(np.mean(one)), float(np.mean(two))))
    null, reached, p = told_apart(trained, seen, seed, permutations)
    found.append(("content (AUC)", null, reached))
    return [Drift(*each, adjusted) for each, adjusted in zip(found, holm([*raw, p]), strict=True)]


def told_apart(trained: Sequence[str], seen: Sequence[str], seed: int, permutations: int) -> tuple[float, float, float]:
    """Returns (AUC between two halves of the training data, AUC between them and what was seen, p of the latter)."""
    import numpy as np

    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise LuthierError("monitor needs scikit-learn: pip install 'luthier[monitor]'") from None
    draw = np.random.default_rng(seed)
    size = min(len(trained) // 2, len(seen))
    one, other = np.split(draw.permutation(len(trained))[: 2 * size], 2)
    late = draw.permutation(len(seen))[:size]
    texts = [*(trained[n] for n in one), *(trained[n] for n in other), *(seen[n] for n in late)]
    points: Any = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True).fit_transform(texts)
    kernel = (points @ points.T).toarray()
    first, second, third = np.split(np.arange(3 * size), 3)
    labels = np.repeat([0, 1], size)
    every = np.stack([labels, *(draw.permutation(labels) for _ in range(permutations))])
    between, apart = np.concatenate([first, second]), np.concatenate([first, third])
    order = draw.permutation(2 * size)
    null = areas(kernel[np.ix_(between, between)], labels[None], order)[0]
    reached, *chance = areas(kernel[np.ix_(apart, apart)], every, order)
    p = (1 + sum(each >= reached for each in chance)) / (1 + permutations)
    return float(null), float(reached), float(p)


def areas(kernel: Any, labels: Any, order: Any) -> Any:
    """Returns the cross-validated AUC of ridge regression for each labelling: kernel [n, n], labels [m, n] of 0 and 1.

    The folds are the same for all, so that one solution per fold serves every labelling.
    """
    import numpy as np

    found = []
    for part in np.array_split(order, FOLDS):
        rest = np.setdiff1d(order, part)
        weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + np.eye(len(rest)), kernel[np.ix_(rest, part)])
        targets = labels[:, rest] - labels[:, rest].mean(1, keepdims=True)
        found.append(area(targets @ weights, labels[:, part]))
    return np.mean(found, axis=0)


def area(scores: Any, labels: Any) -> Any:
    """Returns the AUC of each row of scores [m, n]; 0.5 where only one class is there."""
    import numpy as np
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=1)
    high = labels.sum(1)
    low = labels.shape[1] - high
    pairs = np.maximum(high * low, 1)
    found = ((ranks * labels).sum(1) - high * (high + 1) / 2) / pairs
    return np.where(high * low > 0, found, 0.5)


def holm(raw: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted by Holm, in their order."""
    order = sorted(range(len(raw)), key=lambda n: raw[n])
    found, most = [1.0] * len(raw), 0.0
    for place, n in enumerate(order):
        most = max(most, min(1.0, (len(raw) - place) * raw[n]))
        found[n] = most
    return found


def by_day(
    rows: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], float]
) -> dict[str, tuple[int, float]]:
    """Returns {day: (answers, mean)} of rows that have a time."""
    days: dict[str, list[float]] = {}
    for row in rows:
        if isinstance(time := row.get("time"), str) and len(time) >= 10:
            days.setdefault(time[:10], []).append(read(row))
    return {day: (len(values), sum(values) / len(values)) for day, values in sorted(days.items())}
