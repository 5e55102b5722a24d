"""GOT-D: rows that pull the pool towards the target, by the gradient of an optimal transport."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.contracts.selection import Pool, Selection
from luthier.core.errors import LuthierError
from luthier.data.texts import WORD, full_text

LARGEST = 2 * 10**8
"""Entries of a cost matrix (1.6 GB) beyond which no transport is solved."""


@dataclass(frozen=True)
class GOTD(Selection):
    """s_i = mean(f) - f_i, f the pool's dual potential of OT_ε(pool, target)

    f_i - mean(f) is the derivative of the transport cost in the weight of row i: the rows with the lowest make the
    pool most like the target as they gain weight. The cost of a pair is the squared distance of their unit embeddings
    over its mean, so that ε says the same of every embedding (the authors' is the distance as it is). A row is a point;
    the authors cut and join texts to 1,000 characters. Embeddings: `tfidf` of words, or `states`, the mean of the
    model's last hidden states (the authors take a DistilBERT's).
    """

    paper = "Kang et al. 2024, arXiv 2405.02774"

    epsilon: float = 0.1
    """Entropy of the transport, ε."""
    embedding: Literal["tfidf", "states"] = "tfidf"
    """What rows are compared by."""
    tolerance: float = 1e-6
    """Largest error of the marginals at which the iteration stops."""
    iterations: int = 2000
    """Most iterations of Sinkhorn."""

    def check(self) -> None:
        for name in ("epsilon", "tolerance", "iterations"):
            self.above(name, 0)

    @property
    def reads_states(self) -> bool:
        """With the embedding of that name."""
        return self.embedding == "states"

    def score(self, pool):
        import numpy as np

        potential = np.asarray(self.potential(self.cost(pool)))
        return potential.mean() - potential

    def cost(self, pool: Pool) -> Any:
        """[pool rows, target rows], mean 1; raises `LuthierError` for more than can be held."""
        assert pool.target is not None  # `targeted`
        size = len(pool.examples) * len(pool.target)
        if size > LARGEST:
            raise LuthierError(
                f"a transport of {len(pool.examples):,} rows to {len(pool.target):,} has {size:,} entries, more than "
                f"{LARGEST:,}; give fewer target rows (1,000 will do), or fewer rows to choose from (limit)."
            )
        cost = (2 - 2 * COSINES[self.embedding](pool)).clip(min=0)
        return cost / (cost.mean() or 1.0)

    def potential(self, cost: Any) -> Any:
        """f [pool rows] up to a constant, for even weights on both sides."""
        try:
            from ot.bregman import sinkhorn_log
        except ImportError:
            raise LuthierError("got_d needs POT: pip install 'luthier[ot]'") from None
        import numpy as np

        rows, targets = cost.shape
        _, log = sinkhorn_log(
            np.full(rows, 1 / rows), np.full(targets, 1 / targets), cost, self.epsilon, log=True, warn=False,
            stopThr=self.tolerance, numItermax=self.iterations,
        )  # fmt: skip
        if log["err"][-1] > self.tolerance:
            warnings.warn(
                f"the transport is not solved after {self.iterations} iterations (its marginals are off by "
                f"{log['err'][-1]:.1e}); raise epsilon or iterations.",
                stacklevel=2,
            )
        return self.epsilon * np.asarray(log["log_u"])


def _tfidf(pool: Pool) -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise LuthierError("embedding=tfidf needs scikit-learn: pip install 'luthier[ot]'") from None
    assert pool.target is not None
    left, right = ([full_text(row) for row in part.rows] for part in (pool.examples, pool.target))
    maker: Any = TfidfVectorizer(token_pattern=WORD.pattern, sublinear_tf=True)
    maker.fit([*left, *right])
    return (maker.transform(left) @ maker.transform(right).T).toarray()


def _states(pool: Pool) -> Any:
    import numpy as np

    if pool.states is None:
        raise LuthierError("embedding=states reads the hidden states of a model, and none is given; name one (model).")
    assert pool.target is not None
    found = [np.asarray(pool.states(part), float) for part in (pool.examples, pool.target)]
    left, right = (part / np.linalg.norm(part, axis=1, keepdims=True).clip(min=1e-12) for part in found)
    return left @ right.T


COSINES = {"tfidf": _tfidf, "states": _states}
"""Cosines of the embeddings, [pool rows, target rows], by the setting."""
