"""How much text there is in a value, written out: a list that holds another one twice holds its text twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.utils import Namespace

ITEM = 8
"""Characters that an item counts as, beside its own: a list of two million items is more than a template may make."""
KNOWN = 16
"""Lists and objects whose sizes are remembered, as a template that adds to one asks for it again and again."""
HOLDS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class TooMuch(TemplateError):
    """A template goes beyond the bounds."""


class Sizes:
    """Sizes of values, none of which changes: the sandbox lets no template change one."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[Any, int]] = OrderedDict()

    def of(self, value: Any, most: int) -> int:
        """Returns the size of a value; raises `TooMuch` as soon as it is above `most`."""
        if isinstance(value, str | bytes):
            return len(value)
        if not isinstance(value, (dict, Namespace, *HOLDS)):
            return 0
        if id(value) not in self._known:
            self._known[id(value)] = value, self._counted(value, most)
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        return self._known[id(value)][1]

    def _counted(self, value: Any, most: int) -> int:
        total, left = 0, [value]
        while left:
            each = left.pop()
            if isinstance(each, Namespace):  # what it holds may change
                raise TooMuch("it writes out a namespace, or keeps one in a list, which a template may not")
            if each is not value and id(each) in self._known:
                total += self._known[id(each)][1]
            elif isinstance(each, str | bytes):
                total += len(each)
            elif isinstance(each, dict):
                total += 2 * ITEM * len(each)
                left += [*each.keys(), *each.values()] if total <= most else []
            elif isinstance(each, HOLDS):
                total += ITEM * len(each)
                left += each if total <= most else []
            if total > most:
                raise TooMuch("it makes a text or a list longer than a template may")
        return total
