"""Rows by chance: what every other selection has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.contracts.selection import Selection


@dataclass(frozen=True)
class Random(Selection):
    """u_i ~ U(0, 1): take the largest

    Drawn by the seed. As shots, rows drawn for each prompt anew; to be labelled, a row that has no label yet.
    """

    paper = "the null"
    targeted = False

    def score(self, pool):
        import numpy as np

        return np.random.default_rng(pool.seed).random(len(pool.examples))

    def nearest(self, queries, pool, count):
        import numpy as np

        draw, keys = np.random.default_rng(pool.seed), [row.key() for row in pool.examples.rows]
        orders = [(query.key(), draw.permutation(len(keys))) for query in queries]
        return [[int(i) for i in order if keys[i] != own][:count] for own, order in orders]

    def query(self, pool, known, budget):
        import numpy as np

        free = [i for i in range(len(pool.examples)) if i not in known]
        return int(np.random.default_rng([pool.seed, len(known)]).choice(free))
