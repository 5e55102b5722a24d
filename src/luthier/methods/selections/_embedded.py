"""Rows as points: hashed words, or a model's hidden states."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.selection import Pool
from luthier.core.errors import LuthierError
from luthier.data.texts import WORD, full_text

if TYPE_CHECKING:
    import numpy as np


def points(pool: Pool, embedding: str, width: int = 256) -> np.ndarray:
    """Returns the rows of the pool, each of norm 1, [rows, d], by `words` or `states`."""
    import numpy as np

    if embedding == "words":
        return hashed([full_text(row) for row in pool.examples.rows], width)
    if pool.states is None:
        raise LuthierError("embedding=states reads the hidden states of a model, and none is given; name one (model).")
    found = np.asarray(pool.states(pool.examples), float)
    found = found - found.mean(0)
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(min=1e-12)


def hashed(texts: Sequence[str], width: int) -> np.ndarray:
    """Returns signed counts of hashed words, each row of norm 1, [texts, width]."""
    import numpy as np

    found = np.zeros((len(texts), width))
    for row, text in enumerate(texts):
        for word in WORD.findall(text.lower()):
            code = zlib.crc32(word.encode())
            found[row, code % width] += 1 if code >> 31 else -1
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(min=1e-12)


def clusters(found: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """Returns the cluster of each point, [rows], by k-means; raises without scikit-learn."""
    import warnings

    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise LuthierError(f"{name} needs scikit-learn: pip install 'luthier[ot]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters: some stay empty
        made: Any = KMeans(min(count, len(found)), random_state=seed)  # one start, by k-means++
        return made.fit(found).labels_
