"""Placement of the names of points: each beside its point, without overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

HEIGHT = 12.0
"""Of a line of text, in the units of the drawing."""
WIDTH = 6.7
"""Of a letter: names are set in a fixed width."""
RADII = (9.0, 15.0, 23.0, 33.0, 45.0, 60.0)
ANGLES = tuple(math.radians(angle) for angle in range(0, 360, 30))
PASSES = 4
LEADER = 16.0
"""A name farther than this from its point gets a line to it."""


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """Returns the area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)

    def holds(self, x: float, y: float) -> bool:
        """Whether a place is within."""
        return self.left < x < self.right and self.top < y < self.bottom

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Label:
    """A name as placed: `x` is the text's left edge, `y` its base line; `leader` ends at the text, if it needs one."""

    x: float
    y: float
    box: Box
    leader: tuple[float, float] | None


Point = tuple[float, float, str]


def place(points: Sequence[Point], obstacles: Sequence[Box], frame: Box) -> list[Label]:
    """Returns a place for the name of each (x, y, name) inside `frame`, away from `obstacles` and from the other names.

    Coordinate descent over a ring of candidates: every name moves to its cheapest place, given the others, until the
    passes are over. The same points always give the same places.
    """
    choices = [[_at(x, y, name, *where) for where in product(RADII, ANGLES)] for x, y, name in points]
    blocks = [*obstacles, *(Box(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points)]
    own = [[_cost(label, point, blocks, frame) for label in each] for each, point in zip(choices, points, strict=True)]
    taken = [each[min(range(len(each)), key=cost.__getitem__)] for each, cost in zip(choices, own, strict=True)]
    for _ in range(PASSES):
        for index, (each, cost) in enumerate(zip(choices, own, strict=True)):
            others = [pair for at, pair in enumerate(zip(taken, points, strict=True)) if at != index]
            crowd = [alone + _crowd(label, points[index], others) for label, alone in zip(each, cost, strict=True)]
            taken[index] = each[min(range(len(each)), key=crowd.__getitem__)]
    return taken


def _at(x: float, y: float, name: str, radius: float, angle: float) -> Label:
    """The name with the edge of its box `radius` away from the point, in the direction of `angle`."""
    wide = WIDTH * len(name)
    nearest = x + radius * math.cos(angle), y + radius * math.sin(angle)
    left = nearest[0] - wide * (1 - math.cos(angle)) / 2
    middle = nearest[1] + HEIGHT * math.sin(angle) / 2
    box = Box(left, middle - HEIGHT / 2, left + wide, middle + HEIGHT / 2)
    return Label(left, middle + HEIGHT * 0.3, box, nearest if radius > LEADER else None)


def _cost(label: Label, point: Point, blocks: Sequence[Box], frame: Box) -> float:
    outside = label.box.area - label.box.shared(frame)
    far = 2 * math.dist(label.leader, point[:2]) if label.leader else 0.0
    below = 2.0 if label.y > point[1] + HEIGHT else 0.0
    return 100 * outside + 4 * _covered(label.box, blocks) + far + below


def _crowd(label: Label, point: Point, others: Sequence[tuple[Label, Point]]) -> float:
    """The price of names over names, and of lines through names and points."""
    price = 6 * _covered(label.box, [other.box for other, _ in others])
    for other, its in others:
        price += 40 * sum(other.box.holds(x, y) or math.dist((x, y), its[:2]) < 6 for x, y in _along(label, point))
        price += 40 * sum(label.box.holds(x, y) for x, y in _along(other, its))
    return price


def _along(label: Label, point: Point) -> list[tuple[float, float]]:
    """Places on the line from a point to its name."""
    if label.leader is None:
        return []
    (x, y), (left, top) = label.leader, point[:2]
    return [(left + share * (x - left), top + share * (y - top)) for share in (0.35, 0.6, 0.85, 1.0)]


def _covered(box: Box, others: Sequence[Box]) -> float:
    return sum(box.shared(other) for other in others)
