"""What is known of the prompts of rows, kept beside caches of keys and values for the tokens behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class KeptRows:
    """A tensor [rows, width] for each cache, gone with it; rows that join with less are filled up on the left."""

    def __init__(self, fill: float) -> None:
        self.fill = fill
        self._by_cache: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()

    def of(self, cache: Any) -> Tensor | None:
        """Returns those of a cache's rows, [rows, width]; None where none were kept."""
        return None if cache is None or torch.compiler.is_compiling() else self._by_cache.get(cache)

    def keep(self, cache: Any, held: Tensor) -> None:
        """Keeps those of a cache's rows; a compiled graph keeps none."""
        if cache is not None and not torch.compiler.is_compiling():
            self._by_cache[cache] = held

    def join(self, cache: Any, held: int, prompts: Any, rows: Sequence[int]) -> None:
        """Adds those of `rows` of the cache `prompts` to the `held` rows of a cache, as the rows themselves join."""
        new, old = self.of(prompts), self.of(cache)
        if new is None:
            self._by_cache.pop(cache, None)
            return
        own = new[list(rows)]
        old = own.new_full((held, own.shape[1]), self.fill) if old is None else old
        width = max(own.shape[1], old.shape[1])
        both = [nn.functional.pad(each, (width - each.shape[1], 0), value=self.fill) for each in (old, own)]
        self.keep(cache, torch.cat(both))

    def drop(self, cache: Any, row: int) -> None:
        """Takes a row out of a cache's; the last one moves into its place."""
        if (held := self.of(cache)) is not None:
            left = held[:-1].clone()
            left[row : row + 1] = held[-1:] if row < len(left) else left[row:]
            self.keep(cache, left)


QUERIES, INVOKING = KeptRows(0.0), KeptRows(-1)
"""The mean prompt embeddings of rows, and the tokens of their prompts, where forms go by them."""
