"""Keys and values of the running rows, which come and go between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from luthier.core.adapters.kept_rows import INVOKING, QUERIES

SPARE = 64
"""Columns that a new buffer has room for, at least."""


@dataclass(eq=False)
class Frame:
    """Where the rows lie in the buffers: all end at the same column, as rows padded on the left do."""

    lengths: list[int] = field(default_factory=list)
    """Tokens of each row so far."""
    shifts: list[int] = field(default_factory=list)
    """What a row's positions are ahead of its tokens: pictures may take fewer or more of them."""
    end: int = 0
    """The column behind the last token of every row."""

    @property
    def width(self) -> int:
        """Columns of the longest row."""
        return max(self.lengths, default=0)


class RowLayer(DynamicLayer):
    """One layer's buffers [rows, heads, columns, d_head]; a pass sees the columns of the longest row.

    A token is written in its place, so that a step copies nothing that was there before. Cells of no row are zero:
    what is masked must not be NaN.
    """

    keys: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]

    def __init__(self, frame: Frame, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.frame, self.is_initialized = frame, True
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys.new_zeros(_empty(keys)), values.new_zeros(_empty(values))

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Writes the states of a step behind those of every row; returns all that the rows see."""
        frame, stop = self.frame, self.frame.end + key_states.shape[2]
        rows, first = len(frame.lengths), frame.end - frame.width
        self.keys[:rows, :, frame.end : stop] = key_states
        self.values[:rows, :, frame.end : stop] = value_states
        return self.keys[:rows, :, first:stop], self.values[:rows, :, first:stop]

    def get_seq_length(self) -> int:
        """Columns before the step under way."""
        return self.frame.width

    def fit(self, rows: int, columns: int, end: int) -> None:
        """New buffers in which the rows end at column `end`."""
        self.keys, self.values = (self._moved(t, rows, columns, end) for t in (self.keys, self.values))

    def _moved(self, old: Tensor, rows: int, columns: int, end: int) -> Tensor:
        new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
        count, width = len(self.frame.lengths), self.frame.width
        new[:count, :, end - width : end] = old[:count, :, self.frame.end - width : self.frame.end]
        return new

    def put(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Writes the prompt of a row, [heads, tokens, d_head]."""
        place = slice(self.frame.end - keys.shape[1], self.frame.end)
        self.keys[row, :, place], self.values[row, :, place] = keys, values

    def drop(self, row: int, last: int) -> None:
        """Moves the last row into the place of `row`."""
        for tensor in (self.keys, self.values):
            if row != last:
                tensor[row] = tensor[last]
            tensor[last] = 0


def _empty(tensor: Tensor) -> tuple[int, int, int, int]:
    return 0, tensor.shape[1], 0, tensor.shape[3]


class RowCache(DynamicCache):
    """The cache of a batch whose rows join with their prompts and leave when they are done.

    Buffers grow by halves, so that a row is copied less than three times over however long it gets; the columns of
    rows that left are given up when a buffer is full.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frame = Frame()
        self.layers: list[RowLayer] = []  # type: ignore[assignment]
        self.layer_class_to_replicate = None

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row so far."""
        return self.frame.lengths

    def join(self, prompts: DynamicCache, lengths: Sequence[int], rows: Sequence[int], shift: int = 0) -> None:
        """Adds the `rows` of a batch of prompts, padded on the left, of these `lengths`; `shift` is that of each."""
        if not self.layers:
            self.layers = [RowLayer(self.frame, *states(layer)) for layer in prompts.layers]
        count = len(self.frame.lengths)
        for kept in (QUERIES, INVOKING):
            kept.join(self, count, prompts, rows)
        self._make_room(count + len(rows), max(lengths[row] for row in rows), 0)
        for place, row in enumerate(rows, count):
            for own, layer in zip(self.layers, prompts.layers, strict=True):
                own.put(place, *(tensor[row, :, -lengths[row] :] for tensor in states(layer)))
        self.frame.lengths += [lengths[row] for row in rows]
        self.frame.shifts += [shift] * len(rows)

    def ready(self) -> None:
        """Makes room for the next token of every row."""
        self._make_room(len(self.frame.lengths), 0, 1)

    def advance(self) -> None:
        """Counts the token that a pass has written to every row."""
        self.frame.end += 1
        self.frame.lengths[:] = [length + 1 for length in self.frame.lengths]

    def drop(self, row: int) -> None:
        """Takes a row out; the last one moves into its place."""
        last = len(self.frame.lengths) - 1
        for layer in self.layers:
            layer.drop(row, last)
        for kept in (QUERIES, INVOKING):
            kept.drop(self, row)
        for own in (self.frame.lengths, self.frame.shifts):
            moved = own.pop()
            if row != last:
                own[row] = moved
        if not last:
            self.clear()

    def clear(self) -> None:
        """Drops all rows and their memory."""
        self.frame.lengths.clear()
        self.frame.shifts.clear()
        self.frame.end = 0
        self.layers = []

    def _make_room(self, rows: int, left: int, right: int) -> None:
        """For `rows` rows, the longest of `left` columns at least, and `right` more columns."""
        frame, held = self.frame, self.layers[0].keys
        if rows <= held.shape[0] and left <= frame.end and frame.end + right <= held.shape[2]:
            return
        end = max(frame.width, left)
        height = 1 << (rows - 1).bit_length()
        for layer in self.layers:
            layer.fit(height, end + max(SPARE, end // 2), end)
        frame.end = end


def states(layer: object) -> tuple[Tensor, Tensor]:
    """Returns the keys and values [rows, heads, columns, d_head] that a pass has written to a plain layer."""
    assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
    return layer.keys, layer.values


def attention_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Returns 1 for real tokens of rows padded on the left, [rows, longest]."""
    own = torch.tensor(lengths, device=device)[:, None]
    width = max(lengths)
    return (torch.arange(width, device=device) >= width - own).long()
