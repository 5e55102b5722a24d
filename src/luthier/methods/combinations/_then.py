"""One combination behind another: what a method hands its deltas to."""

from __future__ import annotations

from luthier.core.contracts.combination import Combination
from luthier.core.contracts.component import find
from luthier.core.errors import LuthierError


def following(name: str, owner: Combination) -> Combination:
    """The combination `name` with its own defaults; raises for one that must see other tensors or bases first."""
    found = find("combinations", name)
    if not issubclass(found, Combination) or found.surveys or found.moves:
        raise LuthierError(
            f"{owner.name()}.then is {name!r}, which cannot follow another; take task_arithmetic or ties."
        )
    return found()
