"""BM25: rows that share rare words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.selection import Selection
from luthier.core.errors import LuthierError
from luthier.data.texts import WORD, prompt_text


@dataclass(frozen=True)
class BM25(Selection):
    """s(q, i) = Σ_{w ∈ q} log(1 + (N - n_w + ½)/(n_w + ½)) f_wi / (f_wi + k₁ (1 - b + b |i| / mean |i|))

    What rows ask is compared (answers are not known when shots are found), in lower case, words and signs alike. A
    selection takes the rows with the highest mean over the target rows; shots are the rows nearest to each prompt.
    """

    paper = "Robertson, Zaragoza 2009, doi 10.1561/1500000019; bm25s: Lù 2024, arXiv 2407.03618"

    k1: float = 1.5
    """How soon repetition stops to count."""
    b: float = 0.75
    """How much long rows are held back."""

    def score(self, pool):
        import numpy as np

        assert pool.target is not None  # `targeted`
        index, total = self._index(pool.examples.rows), np.zeros(len(pool.examples))
        for row in pool.target.rows:
            total += scores(index, words(prompt_text(row)), len(total))
        return total / len(pool.target)

    def nearest(self, queries, pool, count):
        import numpy as np

        rows = pool.examples.rows
        index, keys = self._index(rows), [row.key() for row in rows]
        found = []
        for query in queries:
            order = np.argsort(-scores(index, words(prompt_text(query)), len(rows)), kind="stable")
            own = query.key()
            found.append([int(i) for i in order if keys[i] != own][:count])
        return found

    def _index(self, rows: Sequence[Any]) -> Any:
        try:
            import bm25s
        except ImportError:
            raise LuthierError("bm25 needs bm25s: pip install 'luthier[bm25]'") from None
        index = bm25s.BM25(method="lucene", k1=self.k1, b=self.b)
        index.index([words(prompt_text(row)) for row in rows], show_progress=False)
        return index


def words(text: str) -> list[str]:
    """Returns the words and signs of a text."""
    return WORD.findall(text.lower())


def scores(index: Any, query: list[str], rows: int) -> Any:
    """Returns the score of every row for a query, [rows]; 0 where none of its words is known."""
    import numpy as np

    known = [word for word in query if word in index.vocab_dict]
    return np.asarray(index.get_scores(known), float) if known else np.zeros(rows)
