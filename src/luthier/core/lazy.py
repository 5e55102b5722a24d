"""Sequences of more items than memory should hold: each is made when it is asked for."""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")
S = TypeVar("S")


class Lazy(Sequence[T], Generic[T]):
    """Items by their places in a source, of which memory holds the places alone (8 bytes each)."""

    def __init__(self, places: Sequence[int], get: Callable[[int], T]) -> None:
        """`get(place)` makes an item; it gives equal ones for one place, and may be called from several processes."""
        self._places, self._get = places, get
        self.notes: dict[str, Any] = {}
        """What passes over all items have found."""

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy[T]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Lazy(self._places[index], self._get)
        return self._get(self._places[index])

    def __iter__(self) -> Iterator[T]:
        return map(self._get, self._places)


def mapped(items: Sequence[T], change: Callable[[T], S]) -> Sequence[S]:
    """Returns `change` of every item: of a list a list, of what is lazy something lazy."""
    if isinstance(items, Lazy):
        return Lazy(range(len(items)), lambda place: change(items[place]))
    return [change(item) for item in items]


def noted(items: Sequence[T], what: str, find: Callable[[], S]) -> S:
    """Returns what `find` finds in a pass over all items; of lazy ones it is asked once, as a pass takes long."""
    if not isinstance(items, Lazy):
        return find()
    if what not in items.notes:
        items.notes[what] = find()
    return items.notes[what]


def noting(items: Sequence[T], found: Mapping[str, object]) -> Sequence[T]:
    """Returns lazy items with what a pass has found already, for `noted`; others as they are."""
    if isinstance(items, Lazy):
        items.notes |= found
    return items


def kept(items: Sequence[T], places: Iterable[int]) -> Sequence[T]:
    """Returns the items at these places, in this order."""
    if isinstance(items, Lazy):
        return Lazy(array("q", places), items.__getitem__)
    return [items[place] for place in places]


def chained(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """Returns all items of the parts, one part after another; lazy where one of them is."""
    if not any(isinstance(part, Lazy) for part in parts):
        return [item for part in parts for item in part]
    ends = list(itertools.accumulate(map(len, parts)))

    def get(place: int) -> T:
        part = bisect.bisect_right(ends, place)
        return parts[part][place - ends[part]]

    return Lazy(range(ends[-1]), get)
