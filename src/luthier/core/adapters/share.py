"""Shares of a mixed batch: the rows of one adapter, taken out of an activation and put back.

An adapter computes on its own rows alone. So what others compute, be it NaN, never meets it, in either direction of the
pass, and a batch of many adapters costs no more edits than its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from luthier.core.errors import LuthierError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Share:
    """The rows of one adapter, and where their entries lie in an activation."""

    name: str
    rows: Tensor
    """The numbers of its rows [n], ascending."""
    dim: int
    """The axis of the activation along which entries lie."""
    index: Tensor
    """The places of its entries along that axis."""
    first: int | None
    """The first of these places where they are one run, else None."""
    count: int
    """How many entries the activation has along the axis."""

    def take(self, x: Tensor) -> Tensor:
        """Returns its entries of x: a view where they are one run."""
        if self.first is None:
            return x.index_select(self.dim, self.index)
        return x if len(self.index) == self.count else x.narrow(self.dim, self.first, len(self.index))

    def of(self, x: T, y: Tensor) -> T | Tensor:
        """Returns its entries of x, if x is a tensor whose entries lie as those of y; else x."""
        fits = isinstance(x, Tensor) and x.dim() > self.dim and x.shape[: self.dim + 1] == y.shape[: self.dim + 1]
        return self.take(x) if fits else x  # type: ignore[arg-type]


def laid_out(name: str, rows: Sequence[int], dim: int, sizes: Sequence[int], device: torch.device) -> Share:
    """Returns the share that are `rows`, where row i has the next sizes[i] entries along `dim`."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    places = [torch.arange(ends[row], ends[row + 1]) for row in rows]
    runs = all(ends[a + 1] == ends[b] for a, b in pairwise(rows))
    first = ends[rows[0]] if runs else None
    return Share(name, torch.tensor(rows, device=device), dim, torch.cat(places).to(device), first, ends[-1])


def put(y: Tensor, parts: Sequence[tuple[Share, Tensor]]) -> Tensor:
    """Returns y with the entries of each share replaced; no two shares have an entry in common."""
    if not parts:
        return y
    dim = parts[0][0].dim
    if sum(len(share.index) for share, _ in parts) == parts[0][0].count:
        return joined(parts)
    index = torch.cat([share.index for share, _ in parts])
    return y.index_copy(dim, index, torch.cat([new for _, new in parts], dim).to(y.dtype))


def joined(parts: Sequence[tuple[Share, Tensor]]) -> Tensor:
    """Returns an activation that is made of shares, which hold all its entries."""
    share, new = parts[0]
    if len(parts) == 1 and share.first is not None:
        return new
    if all(each.first is not None for each, _ in parts):
        return torch.cat([new for _, new in sorted(parts, key=lambda each: each[0].first or 0)], share.dim)
    order = torch.cat([each.index for each, _ in parts]).argsort()
    return torch.cat([new for _, new in parts], share.dim).index_select(share.dim, order)


class Stream:
    """A random stream of one adapter, apart from torch's own and from those of others."""

    def __init__(self, state: dict[str, Tensor], device: torch.device) -> None:
        """`state` holds that of torch's generator on the CPU, `cpu`, and of its device where the model is
        on another, under its type."""
        self.state, self.device = state, device

    @classmethod
    def now(cls, device: torch.device) -> Stream:
        """Returns a stream that goes on from where torch's generators are."""
        return cls(_state(device), device)

    def begin(self) -> None:
        """Torch's generators go on in this stream."""
        _set(self.state, self.device)

    def end(self) -> None:
        """The stream goes on from where torch's generators are."""
        self.state = _state(self.device)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """What draws while the context lasts goes on in this stream."""
        outer = _state(self.device)
        self.begin()
        try:
            yield
        finally:
            self.end()
            _set(outer, self.device)


def _state(device: torch.device) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cpu":
        return found
    return found | {device.type: torch.get_device_module(device).get_rng_state(*_numbered(device))}


def _set(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type], *_numbered(device))


def _numbered(device: torch.device) -> tuple[torch.device, ...]:
    """The device, for those kinds of which torch knows more than one."""
    return () if device.type == "mps" else (device,)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Torch's generators start from a seed while the context lasts, and are as before behind it."""
    outer = _state(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        _set(outer, device)


class ShareFailed(LuthierError):
    """Raised where the edit of one adapter fails in a pass that it shares with others; `name` is the adapter's."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"adapter {name!r} could not be computed ({type(error).__name__}: {error})")
        self.name = name


def by_name(tuners: Sequence[T], name: Callable[[T], str]) -> dict[str, list[T]]:
    """Returns what belongs to each adapter, in order."""
    found: dict[str, list[T]] = {}
    for tuner in tuners:
        found.setdefault(name(tuner), []).append(tuner)
    return found
