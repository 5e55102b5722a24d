"""What the blocks before the first trained one make of each fact: it never changes, so it is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from luthier.core.adapters.attach import state_of
from luthier.core.sites.probe import eval_mode
from luthier.core.sites.structure import block_lists
from luthier.training.editing.facts import padded
from luthier.training.editing.loss import fact_losses

LARGEST = 2**30
"""Bytes of the states that are kept; of more facts nothing is."""
CLOSE = 1e-3
"""The largest difference, relative and absolute, of a loss from that of an ordinary pass."""
Encoded = tuple[Sequence[int], Sequence[int]]
"""The (ids, labels) of a fact."""


class Prefix:
    """The states of each fact before block `first` of `blocks`, and passes that start there."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList, first: int, rows: Sequence[Encoded], pad: int) -> None:
        self.blocks = [blocks[place] for place in range(first)]
        self.states: list[Tensor] = []
        told: list[object] = []
        with self.blocks[-1].register_forward_hook(lambda *given: told.append(given[-1])), eval_mode(model):
            for row in rows:  # each alone, so that a run that goes on has the same bits
                fact_losses(model, padded([row], pad))
                state = told.pop() if told else None
                if not isinstance(state, Tensor) or len(rows) * state.nbytes > LARGEST:
                    return
                self.states.append(state[0])

    @contextmanager
    def known(self, places: Sequence[int]) -> Iterator[None]:
        """Lets passes over the facts at these places start at the first trained block."""
        state = nn.utils.rnn.pad_sequence([self.states[place] for place in places], batch_first=True)
        own = [block.__dict__.get("forward") for block in self.blocks]
        try:
            for block in self.blocks:
                block.forward = lambda *_, **__: state
            yield
        finally:
            for block, forward in zip(self.blocks, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


def prefix_of(model: nn.Module, rows: Sequence[Encoded], pad: int) -> Prefix | None:
    """Returns what serves passes over these facts; None where the first block is trained or something outside of the
    blocks, and where a pass that starts behind them is not the ordinary one."""
    stacks = block_lists(model)
    modules = [site.module for component in state_of(model).components for site in component.sites]
    if len(stacks) != 1:
        return None
    path, blocks = next(iter(stacks.items()))
    inside = [module.removeprefix(f"{path}.").split(".")[0] for module in modules if module.startswith(f"{path}.")]
    if len(inside) < len(modules) or not (first := min(map(int, inside), default=0)):
        return None
    found = Prefix(model, blocks, first, rows, pad)
    return found if len(found.states) == len(rows) and _agrees(model, found, rows, pad) else None


def _agrees(model: nn.Module, prefix: Prefix, rows: Sequence[Encoded], pad: int) -> bool:
    """Whether the first and the longest fact together have the losses of an ordinary pass."""
    places = sorted({0, max(range(len(rows)), key=lambda place: len(rows[place][0]))})
    batch = padded([rows[place] for place in places], pad)
    with eval_mode(model):
        wanted = fact_losses(model, batch)
        try:
            with prefix.known(places):
                found = fact_losses(model, batch)
        except (
            RuntimeError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
        ):  # blocks that hand on more than states
            return False
    return torch.allclose(found, wanted, rtol=CLOSE, atol=CLOSE)
