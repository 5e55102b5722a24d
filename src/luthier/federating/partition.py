"""The partition of rows among clients: at random, skewed by class, or by a column."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from luthier.core.errors import LuthierError
from luthier.federating.spec import Federation

USUAL = 8
"""Clients by default."""
DRAWS = 100
"""Draws of a skewed split until every client has a row."""

Parts = list[list[int]]
"""The places of each client's rows, ascending."""


def partition(federation: Federation, kinds: Sequence[Hashable | None], seed: int) -> Parts:
    """The rows, given by their kinds (classes or values of a column), dealt to the clients; each row goes to one.

    Raises `LuthierError` for fewer rows than clients, kinds that are missing, and a number of clients that is not that
    of the values.
    """
    clients = federation.clients or USUAL
    if federation.split != "column" and len(kinds) < clients:
        raise LuthierError(f"{len(kinds):,} rows do not do for {clients:,} clients; give more rows or fewer clients.")
    parts = SPLITTERS[federation.split](federation, kinds, random.Random(seed))
    return [sorted(part) for part in parts]


def _iid(federation: Federation, kinds: Sequence[Hashable | None], draw: random.Random) -> Parts:
    """Shuffled and dealt in turn: sizes differ by one row at most."""
    order = draw.sample(range(len(kinds)), len(kinds))
    clients = federation.clients or USUAL
    return [order[client::clients] for client in range(clients)]


def _dirichlet(federation: Federation, kinds: Sequence[Hashable | None], draw: random.Random) -> Parts:
    """The rows of each kind are divided by shares from Dir(α, …, α) over the clients (Hsu et al. 2019, 1909.06335)."""
    groups = _groups(kinds, federation)
    if len(groups) < 2:
        raise LuthierError("all rows are of one kind, so nothing can be skewed; give rows with classes, or a column.")
    clients = federation.clients or USUAL
    for _ in range(DRAWS):
        parts: Parts = [[] for _ in range(clients)]
        for rows in groups.values():
            shuffled = draw.sample(rows, len(rows))
            for part, given in zip(
                parts, _cut(shuffled, _shares(clients, federation.concentration, draw)), strict=True
            ):
                part += given
        if all(parts):
            return parts
    raise LuthierError(
        f"concentration {federation.concentration:g} left a client of {clients:,} without rows in each of {DRAWS} "
        "draws; take a larger one, fewer clients or more rows."
    )


def _shares(count: int, concentration: float, draw: random.Random) -> list[float]:
    found = [draw.gammavariate(concentration, 1.0) for _ in range(count)]
    total = sum(found)
    return [value / total for value in found] if total > 0 else [1 / count] * count


def _cut(rows: Sequence[int], shares: Sequence[float]) -> Parts:
    """Rows cut in the order given, at the rounded sums of the shares."""
    cuts, reached = [0], 0.0
    for share in shares:
        reached += share
        cuts.append(round(min(reached, 1.0) * len(rows)))
    cuts[-1] = len(rows)
    return [list(rows[first:last]) for first, last in itertools.pairwise(cuts)]


def _column(federation: Federation, kinds: Sequence[Hashable | None], draw: random.Random) -> Parts:
    """A client for each value, in the order of the values."""
    groups = _groups(kinds, federation)
    if federation.clients not in (None, len(groups)):
        sizes = ", ".join(f"{kind!r} ({count})" for kind, count in Counter(kinds).most_common(5))
        raise LuthierError(
            f"column {federation.column!r} has {len(groups)} values, most often {sizes}; that makes as many clients, "
            f"and clients is {federation.clients}. Leave clients out."
        )
    return list(groups.values())


def _groups(kinds: Sequence[Hashable | None], federation: Federation) -> dict[Hashable, list[int]]:
    """The places of each kind, kinds in order."""
    missing = [place for place, kind in enumerate(kinds) if kind is None]
    if missing:
        what = f"no column {federation.column!r}" if federation.column else "no class; name a column to go by (column)"
        raise LuthierError(f"{len(missing):,} of {len(kinds):,} rows have {what}.")
    found: dict[Hashable, list[int]] = {kind: [] for kind in sorted(set(kinds), key=str)}
    for place, kind in enumerate(kinds):
        assert kind is not None
        found[kind].append(place)
    return found


SPLITTERS: dict[str, Callable[[Federation, Sequence[Hashable | None], random.Random], Parts]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "column": _column,
}
"""How each split divides rows."""
