"""The state of a forward pass through an adapted model: prompts, adapters of rows, tasks. Each thread has its own."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from luthier.core.adapters.call import Call, Prompt, entries
from luthier.core.adapters.row_input import RowInput
from luthier.core.adapters.share import Share, ShareFailed, Stream, laid_out
from luthier.core.adapters.siblings import PrefetchedOutputs, SharedInput
from luthier.core.contracts.router import Route, Told
from luthier.core.errors import LuthierError
from luthier.core.sites.packing import packing_now, row_now
from luthier.core.threads import Thread


class Named(Protocol):
    """What belongs to an adapter."""

    name: str


N = TypeVar("N", bound=Named)
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
    seen: RowInput | None = None
    """The model's input, its padding, and the states of its blocks, where a form reads whole rows."""
    rows: tuple[str | None, ...] | None = None
    """The adapter of each row in a mixed batch."""
    only: str | None = None
    """The adapter whose share of a mixed batch is computed just now; others leave it alone."""
    streams: Mapping[str, Stream] | None = None
    """The random stream of each adapter, where every one has its own: its dropout is drawn from that."""
    shares: dict[Any, Share | None] = field(default_factory=dict)
    """The shares of activations that were laid out, by rows, name and layout."""
    draws: dict[tuple[str, int], tuple[weakref.ref[Tensor], int, set[int], Tensor]] = field(default_factory=dict)
    """The last draw of each adapter and run of a mixed batch: what it was for, and which layers have had it."""
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

    def prompt_of(self, owner: str, decoder: str | None) -> Prompt:
        """Returns the prompt of a stack; a decoder's, behind an encoder, is its start token by default."""
        if decoder is None:
            return self.prompt or self.derived or Prompt()
        return (self.prompt or Prompt(end=1)) if owner == decoder else Prompt()

    def acting(self, tuners: Sequence[N]) -> Sequence[N]:
        """Returns those of an adapter's tuner layers that act: while one adapter's share is computed, its own."""
        return tuners if self.only is None else [tuner for tuner in tuners if tuner.name == self.only]

    @contextmanager
    def bare(self, only: str = "") -> Iterator[None]:
        """All rows are those of the adapter `only`, or of none, while the context lasts."""
        before = self.rows, self.only
        self.rows, self.only = None, only
        try:
            yield
        finally:
            self.rows, self.only = before

    def share(self, names: Sequence[str], like: Tensor, others: bool = False) -> Share | None:
        """Returns where the rows of an adapter are in `like`, [entries, ...] or packed; None where it has none.

        With `others`, the rows of none of the `names`.
        """
        rows, packing, alone = self.rows or (), packing_now(), row_now()
        packs = alone is None and packing is not None and packing.tokens in like.shape[: like.dim() - 1]
        dim = int(packs and packing is not None and packing.holds(like))
        layout = packing.lengths if packs and packing is not None else [like.shape[0], alone]
        key = (rows, *names, others, dim, packs, *layout, like.device)
        if key not in self.shares:
            if len(self.shares) > MANY:
                self.shares.clear()
            own = [row for row, each in enumerate(rows) if (each in names) is not others]
            if alone is not None:
                own, sizes = [0] * (alone in own), [like.shape[0]]
            else:
                sizes = layout if packs else [entries(like, len(rows))] * len(rows)
            name = "" if others else names[0]
            self.shares[key] = laid_out(name, own, dim, sizes, like.device) if own else None
        return self.shares[key]

    def runs(self, x: Tensor) -> list[tuple[str | None, int]]:
        """Returns the runs of entries of one adapter each that x holds, in order: (its name, or None; how many)."""
        rows, packing = self.rows or (), packing_now()
        packs = packing is not None and packing.tokens in x.shape[: x.dim() - 1]
        sizes = packing.lengths if packs and packing is not None else [entries(x, len(rows))] * len(rows)
        found: list[tuple[str | None, int]] = []
        for name, size in zip(rows, sizes, strict=True):
            if found and found[-1][0] == name:
                size += found.pop()[1]
            found.append((name, size))
        return found

    def drawn(self, name: str, run: int, x: Tensor, layer: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """Returns what `make` draws for a run of an adapter's entries in x, in the adapter's own stream.

        Layers that read the same tensor meet the same draw, each once, as those of an adapter that is alone do.
        """
        held = self.draws.get((name, run))
        if held is not None and held[0]() is x and held[1] == x._version and id(layer) not in held[2]:
            held[2].add(id(layer))
            return held[3]
        with self.streams[name].drawing() if self.streams is not None else nullcontext():
            found = make()
        self.draws[name, run] = weakref.ref(x), x._version, {id(layer)}, found
        return found

    @contextmanager
    def within(self, share: Share, owner: str, draws: bool) -> Iterator[None]:
        """The pass is that of one adapter's rows alone while the context lasts.

        With `draws`, random numbers come from the adapter's own stream where it has one. What fails among adapters
        with such streams is the adapter's own fault (`ShareFailed`).
        """
        rows, name = self.rows, share.name
        before = (rows, self.only, self.row_tasks, self.tasks, self.seen, self.calls.get(owner))
        call = before[-1]
        told = self.row_tasks.get(name)
        self.row_tasks = {} if told is None else {name: told[share.rows.to(told.device)]}
        if call is not None:
            self.calls[owner] = call.of_rows(share.rows, len(rows or ()), name)
        if self.seen is not None:
            self.seen = self.seen.of_rows(share.rows)
        self.rows, self.only = None, name
        try:
            if draws and self.streams is not None:
                with self.streams[name].drawing():
                    yield
            else:
                yield
        except (torch.OutOfMemoryError, ShareFailed):
            raise
        except Exception as error:
            raise error if self.streams is None else ShareFailed(name, error) from error
        finally:
            self.rows, self.only, self.row_tasks, self.tasks, self.seen = before[:-1]
            if call is not None:
                self.calls[owner] = call


MANY = 4096
"""Layouts of shares that are kept."""


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
        """What a copy is made of, which is under no pass. Raises within a context, which would never end for a copy."""
        if self.holder is not None:
            raise LuthierError(
                f"this model is in {self.who}, in which a copy of it would stay for good; copy, pickle or save it "
                "before or behind that context."
            )
        return {"decoder": self.decoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()
        self.decoder = state["decoder"]


_TAKING = threading.Lock()
