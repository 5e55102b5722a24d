"""The state of a forward pass through an adapted model: prompts, adapters of rows, tasks. Each thread has its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.call import Call, Prompt, entries
from luthier.core.adapters.siblings import PrefetchedOutputs, SharedInput
from luthier.core.contracts.router import Route, Told
from luthier.core.errors import LuthierError
from luthier.core.sites.packing import packing_now, row_now
from luthier.core.threads import Thread

Edit = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""A function in place of a linear layer: `(x, layer) -> y`."""


@dataclass(eq=False)
class Pass:
    """The state that the adapted modules of one model share in a thread's forward pass, with what contexts have set."""

    calls: dict[str, Call | None] = field(default_factory=dict)
    """The current call of each stack of blocks, by its owner's path."""
    prompt: Prompt | None = None
    """Where prompts end, as `generate` or the user said."""
    derived: Prompt | None = None
    """Where prompts end, derived from the labels of the current pass."""
    running: dict[str, bool] = field(default_factory=dict)
    """Whether the own forward pass of a layer is running, by path, for layers that other modules read too."""
    inside: dict[str, Edit] = field(default_factory=dict)
    """What runs in place of linear layers, by path, while a form runs the module that holds them."""
    aside: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """The states beside each stack of blocks, by the owner's path and the adapter's name."""
    rows: tuple[str | None, ...] | None = None
    """The adapter of each row in a mixed batch."""
    frozen: bool = False
    """Whether the adapters' parameters stay unchanged while these rows are set."""
    row_tasks: dict[str, Tensor] = field(default_factory=dict)
    """The task of each row by the adapter that goes by it, where the rows of a mixed batch have tasks."""
    tasks: Told | None = None
    """The tasks of the rows, set around the call or by its arguments."""
    routes: list[Route] | None = None
    """The recorded routing decisions, while `watched` is active."""
    reached: set[tuple[str, str]] | None = None
    """The sites that a probing pass has reached, while it runs."""
    shared_input: SharedInput | None = None
    """The input that layers of a probing pass are reading."""
    returned: list[tuple[nn.Module, Tensor, int]] = field(default_factory=list)
    """The outputs of layers in a probing pass, with their version counters."""
    prefetched: PrefetchedOutputs | None = None
    """The prefetched outputs of the layers that are called next."""

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy is made from: the contexts that are set, without the pass that is running."""
        idle = {
            "calls": {},
            "running": {},
            "inside": {},
            "aside": {},
            "derived": None,
            "reached": None,
            "shared_input": None,
            "returned": [],
        }
        return {**vars(self), **idle, "prefetched": None}

    def prompt_of(self, owner: str, decoder: str | None) -> Prompt:
        """Returns the prompt of a stack; a decoder's, behind an encoder, is its start token by default."""
        if decoder is None:
            return self.prompt or self.derived or Prompt()
        return (self.prompt or Prompt(end=1)) if owner == decoder else Prompt()

    def row_mask(self, name: str, like: Tensor) -> Tensor:
        """Returns True for the rows of `like` that use the adapter `name`, shaped to broadcast over it."""
        rows, packing = self.rows or (), packing_now()
        if (alone := row_now()) is not None:
            rows = rows[alone : alone + 1]
        own = torch.tensor([row == name for row in rows], device=like.device)
        if alone is None and packing is not None and packing.tokens in like.shape[: like.dim() - 1]:
            mask = own.repeat_interleave(torch.tensor(packing.lengths, device=like.device))
            return mask.view(*[1] * int(packing.holds(like)), -1, *[1] * (like.dim() - 1 - packing.holds(like)))
        mask = own.repeat_interleave(entries(like, len(rows)))
        return mask.view(-1, *[1] * (like.dim() - 1))


class Own(Thread):
    """A thread's own pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Pass()


class Passes:
    """The passes of one model, a thread's each, and which thread has the model for itself.

    `rows`, `disabled` and the like change what all passes would do. So a thread that is in one of them is the only one
    that may run the model or switch its adapters; others are refused, instead of getting another's rows.
    """

    def __init__(self) -> None:
        self.own = Own()
        self.holder: Pass | None = None
        self.who = ""
        """What the holder is in, in words."""
        self.arranged = False
        """Rows stand that a `RowAssignment` has set, in whatever thread."""
        self.decoder: str | None = None
        """Path of the decoder of an encoder-decoder."""

    @property
    def now(self) -> Pass:
        """The pass of this thread; of autograd's own threads, the holder's. Raises where another thread holds."""
        own, holder = self.own, self.holder
        if holder is None or holder is own.now:
            return own.now
        if own.of_autograd:
            return holder
        raise LuthierError(
            f"another thread is in {self.who} of this model, which only that thread may run meanwhile. Enter the "
            "context in the thread that runs the model, take turns, or give each thread a model of its own "
            "(copy.deepcopy)."
        )

    def alone(self) -> None:
        """Raises where another thread has the model for itself; what switches or moves adapters asks first."""
        _ = self.now

    @contextmanager
    def held(self, what: str) -> Iterator[Pass]:
        """The model is this thread's alone while the context lasts; contexts of one thread nest."""
        with _TAKING:
            mine, outer = self.now, (self.holder, self.who)
            self.holder, self.who = mine, self.who if outer[0] else what
        try:
            yield mine
        finally:
            self.holder, self.who = outer

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of, which nobody holds."""
        return {"decoder": self.decoder, "now": self.own.now}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()
        self.decoder, self.own.now = state["decoder"], state["now"]


_TAKING = threading.Lock()
