"""MAPO: what to label next, by a policy that was trained against the worst case in simulation."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.contracts.selection import Pool, Selection
from luthier.core.errors import LuthierError
from luthier.data.texts import full_text
from luthier.methods.selections._embedded import clusters, points


@dataclass(frozen=True)
class MAPO(Selection):
    """π = argmin_π max_k (max_{θ ∈ Θ_k} ℓ(π, θ) - ℓ_k), ℓ_k = min_π max_{θ ∈ Θ_k} ℓ(π, θ), Θ_1 ⊂ Θ_2 ⊂ …

    First a policy for each class of problems alone, then one whose worst regret to them is least: where the problem is
    easy it does nearly as well as if that were known. Policies are trained in play, by gradient descent against an
    adversary that picks the instance (for a few questions and arms, over every history; else by REINFORCE).

    The problem here: the pool in cells (k-means of its rows), each with a label that most of its rows have; a question
    is the label of one row of a cell; in the end each cell gets its majority, or the nearest labelled cell's; ℓ is the
    share of rows that get the wrong one. Θ_k are labellings that change over at most 10, 30 or 60% of the edges of the
    cells' shortest tree, with up to 0, 15 or 30% of a cell's rows labelled otherwise. The policy sees votes, sizes and
    distances of cells alone, so it is trained before the first label, in seconds; how the sizes are chosen is ours, as
    is the game: the paper's are best arms and 20 questions. Of the cell, a row is drawn by the seed.
    """

    paper = "Zhang, Jain, Jamieson 2020 (Learning to actively learn: a robust approach), arXiv 2010.15382"

    embedding: Literal["words", "states"] = "words"
    """What rows are compared by."""
    cells: int = 12
    """Cells of the pool."""
    worlds: int = 6
    """Labellings drawn for each class of problems."""
    games: int = 8
    """Games in each world at a step of training."""
    rounds: int = 60
    """Steps of training for each policy."""

    def check(self) -> None:
        self.within("cells", 2, 200)
        for name in ("worlds", "games", "rounds"):
            self.within(name, 1)

    @property
    def reads_states(self) -> bool:
        """With the embedding of that name."""
        return self.embedding == "states"

    def query(self, pool, known, budget):
        import numpy as np
        import torch

        from luthier.methods.selections._cells import Votes

        laid = _laid(self, pool)
        which = [laid.cell_of[_key(row)] for row in pool.examples.rows]
        horizon = min(len(known) + budget, 2 * laid.cells.count)
        policy = _policy(self, laid, horizon, pool.seed)
        names = sorted(set(known.values()))
        votes = Votes.none(1, laid.cells.count, max(2, len(names)))
        for place, label in known.items():
            votes.add(torch.tensor([which[place]]), torch.tensor([names.index(label)]))
        with torch.inference_mode():
            found = policy(votes.seen(laid.cells, budget / (len(known) + budget)))[0].numpy()
        free = [place for place in range(len(which)) if place not in known]
        cell = max({which[place] for place in free}, key=lambda c: (found[c], -c))
        rows = [place for place in free if which[place] == cell]
        return int(np.random.default_rng([pool.seed, len(known)]).choice(rows))


@dataclass(frozen=True, eq=False)
class _Laid:
    """A pool in cells."""

    cell_of: dict[tuple[int, str], int]
    """The cell of each row, by its number and what it says."""
    cells: Any


_LAID: dict[tuple[Any, ...], _Laid] = {}
"""The cells of the pool that was asked last: a question needs them again, and their policy."""


def _key(row: Any) -> tuple[int, str]:
    return row.row, full_text(row)


def _laid(settings: MAPO, pool: Pool) -> _Laid:
    """The cells of a pool; a part of the last pool keeps its cells, so that a skipped row costs no training."""
    key = (settings, pool.seed)
    known = _LAID.get(key)
    if known is None or not all(_key(row) in known.cell_of for row in pool.examples.rows):
        _LAID.clear()
        _LAID[key] = _divided(settings, pool)
    return _LAID[key]


def _divided(settings: MAPO, pool: Pool) -> _Laid:
    import numpy as np
    import torch

    from luthier.methods.selections._cells import Cells

    found = points(pool, settings.embedding)
    which = clusters(found, settings.cells, pool.seed, "mapo")
    known = np.unique(which)
    if len(known) < 2:
        raise LuthierError("mapo tells the rows apart by cells, and these are all alike; label some at random.")
    which = np.searchsorted(known, which)
    centres = np.stack([found[which == c].mean(0) for c in range(len(known))])
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    share = np.bincount(which) / len(which)
    cell_of = {_key(row): int(cell) for row, cell in zip(pool.examples.rows, which, strict=True)}
    return _Laid(cell_of, Cells(torch.tensor(share).float(), torch.tensor(distance / distance.max()).float()))


@functools.lru_cache(maxsize=4)
def _policy(settings: MAPO, laid: _Laid, horizon: int, seed: int) -> Any:
    """The policy for these cells, trained once; `horizon` questions are asked in play."""
    import torch

    from luthier.methods.selections._cells import Played, Scorer, Worlds
    from luthier.methods.selections._minimax import nested

    worlds = Worlds.drawn(laid.cells, settings.worlds, seed)
    draw = torch.Generator().manual_seed(seed)
    played = Played(laid.cells, worlds, horizon, settings.games, draw)
    made = functools.partial(Scorer, seed)
    return nested(played, made, worlds.classes, steps=settings.rounds, lr=0.03, exact=False)[0]
