"""Margin sampling: the row whose two likeliest classes are closest is labelled next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.core.contracts.selection import Selection
from luthier.core.errors import LuthierError
from luthier.methods.selections._embedded import points


@dataclass(frozen=True)
class Margin(Selection):
    """next = argmin_i (p₁(x_i) - p₂(x_i)), the two highest probabilities of a logistic regression on what is labelled

    Until two classes are known, a row by chance.
    """

    paper = "Scheffer, Decomain, Wrobel 2001, doi 10.1007/3-540-44816-0_31"

    embedding: Literal["words", "states"] = "words"
    """What rows are compared by."""

    @property
    def reads_states(self) -> bool:
        """With the embedding of that name."""
        return self.embedding == "states"

    def query(self, pool, known, budget):
        import numpy as np

        free = [i for i in range(len(pool.examples)) if i not in known]
        if len(set(known.values())) < 2:
            return int(np.random.default_rng([pool.seed, len(known)]).choice(free))
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise LuthierError("margin needs scikit-learn: pip install 'luthier[ot]'") from None
        found = points(pool, self.embedding)
        fitted = LogisticRegression(C=10.0, max_iter=200).fit(found[list(known)], list(known.values()))
        top = np.sort(fitted.predict_proba(found[free]), axis=1)
        return free[int((top[:, -1] - top[:, -2]).argmin())]
