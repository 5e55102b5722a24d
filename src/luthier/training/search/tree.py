"""The tree of a search: ranges of layers by kinds of modules, halved where training was best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A range of layers and a kind of modules."""

    modules: str
    """The name of the kind."""
    first: int
    last: int
    """Both included."""
    parent: str | None = None
    """The name of the node whose range it halves."""

    @property
    def name(self) -> str:
        """Its name, which is also that of its run's folder."""
        return f"{self.modules}-{self.first}-{self.last}"


def halves(node: Node, least: int) -> list[Node]:
    """Returns the lower, the middle and the upper half of a node's range; none where a half has fewer layers than
    `least`."""
    width = node.last - node.first + 1
    half = (width + 1) // 2
    if half < least or half == width:
        return []
    starts = (node.first, node.first + (width - half) // 2, node.last - half + 1)
    return [Node(node.modules, first, first + half - 1, node.name) for first in dict.fromkeys(starts)]


def explore(
    modules: Sequence[str], depth: int, least: int, budget: int, score: Callable[[Node], float]
) -> Iterator[tuple[Node, float]]:
    """Yields nodes with their scores, of which the lowest is the best, until `budget` nodes were scored.

    All kinds are tried on all layers first. Then the halves of the best node that has not been parted, whichever kind
    it is of. Of equal scores the earlier node is parted first.
    """
    scored: dict[str, tuple[Node, float]] = {}
    parted: set[str] = set()
    waiting = [Node(each, 0, depth - 1) for each in modules]
    while waiting:
        for node in waiting:
            if node.name in scored:
                continue
            if len(scored) == budget:
                return
            scored[node.name] = node, score(node)
            yield scored[node.name]
        waiting = []
        for node, _ in sorted(scored.values(), key=lambda each: each[1]):
            if node.name not in parted:
                parted.add(node.name)
                waiting = [each for each in halves(node, least) if each.name not in scored]
                if waiting:
                    break
