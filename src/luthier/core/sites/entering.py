"""Passes that begin at a block: what enters it stays the same while nothing below it is trained, and is kept.

To everything but the blocks below, a pass is what it always was: embeddings are looked up, masks made, and the blocks
below are called and hand on what they were given. Behind the last of them stands what an earlier pass computed there,
row by row, with zeros where there is padding. A row is known by its tokens alone, so a batch may hold any rows in any
order; one with a row that is not known runs as it is, and what it computes is kept. Who makes a pass read something
else than its rows' tokens, or has other adapters act below, says so (`whole_passes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luthier.core.sites.outputs import leading, led

TOLD = {
    "input_ids", "attention_mask", "token_type_ids", "labels", "shift_labels", "logits_to_keep", "use_cache",
    "return_dict", "tasks",
}  # fmt: skip
"""Arguments of a pass that begins at a block; of these, `BY_TOKEN` decide what enters it."""
BY_TOKEN = ("input_ids", "token_type_ids")


_WHOLE: ContextVar[bool] = ContextVar("passes are whole, and nothing of them is kept", default=False)


@contextmanager
def whole_passes() -> Iterator[None]:
    """Within the context passes compute all blocks and nothing of them is kept, as of noise on the embeddings."""
    before = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(before)


class Kept(Protocol):
    """What keeps the activations of rows."""

    dtype: torch.dtype

    def place(self, row: Sequence[Tensor]) -> int | None:
        """Returns the place of a row of these token ids [length] each, as `BY_TOKEN` lists them; None for none."""
        ...

    def read(self, place: int, into: Tensor) -> bool:
        """Fills `into` [length, d]; False where nothing is kept, or something damaged."""
        ...

    def write(self, place: int, found: Tensor) -> None:
        """Keeps the activations [length, d] of a row."""
        ...


@dataclass(frozen=True)
class Below:
    """The blocks that passes do without."""

    blocks: tuple[nn.Module, ...]
    """Those below the block that a pass begins at, in order."""
    count: int
    """Blocks of the whole stack."""
    width: int
    """That of what leaves the last of them [rows, tokens, width]."""
    dtype: torch.dtype
    """Of the same."""
    output: Any
    """What a block returns, with None for each tensor: a tuple, or None itself."""


@dataclass
class Entry:
    """The running pass, and how many there were."""

    below: Below
    kept: Kept
    places: list[int] | None = None
    """Those of the batch's rows; None where the pass is none to begin at a block."""
    lengths: list[int] = field(default_factory=list)
    held: dict[int, Tensor] = field(default_factory=dict)
    """What is kept of the batch's rows, [length, d], by place."""
    passes: int = 0
    begun: int = 0
    """Passes that began at the block, of all `passes`."""

    @property
    def begins(self) -> bool:
        """Whether the running pass begins at the block."""
        return self.places is not None and len(self.held) == len(set(self.places))

    def filled(self, like: Tensor) -> Tensor:
        """Returns `like` [rows, width, d] with what is kept in its place, and zeros where that was padding."""
        found = like.new_zeros(like.shape)
        for row, (place, length) in enumerate(zip(self.places or (), self.lengths, strict=True)):
            found[row, :length] = self.held[place].to(like)
        return found

    def keep(self, h: Tensor) -> Tensor:
        """Keeps what is new of h [rows, width, d], and returns it as it is kept, rounded to that dtype."""
        changed = bool(self.held) or self.kept.dtype != h.dtype
        for row, (place, length) in enumerate(zip(self.places or (), self.lengths, strict=True)):
            if place not in self.held:
                self.held[place] = h[row, :length].detach().to("cpu", self.kept.dtype)
                self.kept.write(place, self.held[place])
        return self.filled(h) if changed else h


@contextmanager
def entered(model: nn.Module, below: Below, kept: Kept) -> Iterator[Entry]:
    """While the context lasts, passes of this model over rows that are `kept` begin behind the blocks `below`; all
    others are as they were, and keep what they compute there."""
    entry, blocks = Entry(below, kept), below.blocks
    plain = [(block, vars(block).get("forward"), block.forward) for block in blocks]
    hooks = [
        model.register_forward_pre_hook(partial(_begin, entry), with_kwargs=True),
        model.register_forward_hook(partial(_end, entry), always_call=True),
        *(block.register_forward_pre_hook(partial(_bare, entry), with_kwargs=True, prepend=True) for block in blocks),
        blocks[-1].register_forward_hook(partial(_leave, entry)),
    ]
    try:
        for block, _, forward in plain:
            block.forward = partial(_forward, entry, forward)
        yield entry
    finally:
        for hook in hooks:
            hook.remove()
        for block, own, _ in plain:
            del block.forward
            if own is not None:
                block.forward = own


def _begin(entry: Entry, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    entry.passes += 1
    entry.places, entry.held = None, {}
    rows = None if args or _WHOLE.get() else rows_of(kwargs)
    if rows is None:
        return
    places = [entry.kept.place(row) for row in rows]
    known = [place for place in places if place is not None]
    if len(known) < len(places):
        return
    entry.places, entry.lengths = known, [len(row[0]) for row in rows]
    for place, length in dict(zip(known, entry.lengths, strict=True)).items():
        into = torch.empty(length, entry.below.width, dtype=entry.kept.dtype)
        if entry.kept.read(place, into):
            entry.held[place] = into
    entry.begun += entry.begins


def _end(entry: Entry, model: nn.Module, args: tuple, output: Any) -> None:
    entry.places, entry.held = None, {}


def rows_of(batch: Mapping[str, Any]) -> list[list[Tensor]] | None:
    """Returns the real tokens of each row of a batch, as `BY_TOKEN` lists them; None for a batch that is told more of
    its rows, keeps keys and values, or has padding elsewhere than behind its rows."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    given = {key for key, value in batch.items() if value is not None}
    if not isinstance(ids, Tensor) or ids.dim() != 2 or given - TOLD or batch.get("use_cache"):
        return None
    lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.bool().sum(-1).cpu()
    if mask is not None:
        columns = torch.arange(ids.shape[1], device=ids.device)
        if mask.shape != ids.shape or not bool((mask.bool() == (columns < lengths.to(ids.device)[:, None])).all()):
            return None
    told = [batch[name].cpu() for name in BY_TOKEN if batch.get(name) is not None]
    return [[each[row, :length] for each in told] for row, length in enumerate(lengths.tolist())]


def _bare(entry: Entry, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """A block that computes nothing needs no mask, and so its tokens are not packed either."""
    return ((args[0] if args else kwargs["hidden_states"],), {}) if entry.begins else None


def _forward(entry: Entry, forward: Any, *args: Any, **kwargs: Any) -> Any:
    return led(entry.below.output, args[0]) if entry.begins else forward(*args, **kwargs)


def _leave(entry: Entry, block: nn.Module, args: tuple, output: Any) -> Any:
    """What leaves the last of the blocks: padded, for a packed batch is unpacked before."""
    if entry.places is None:
        return None
    h = leading(output)
    return led(output, entry.filled(h) if entry.begins else entry.keep(h))
