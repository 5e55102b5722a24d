"""The state of a forward pass through an adapted model: prompts, the adapter of each row, tasks, and recorders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.call import Call, Prompt, entries
from luthier.core.adapters.siblings import PrefetchedOutputs, SharedInput
from luthier.core.contracts.router import Route, Told


@dataclass(eq=False)
class Pass:
    """The state that the adapted modules of one model share in a forward pass, and what contexts have set for it."""

    calls: dict[str, Call | None] = field(default_factory=dict)
    """The current call of each stack of blocks, by its owner's path."""
    prompt: Prompt | None = None
    """Where prompts end, as `generate` or the user said."""
    derived: Prompt | None = None
    """Where prompts end, derived from the labels of the current pass."""
    decoder: str | None = None
    """The path of the decoder of an encoder-decoder."""
    rows: tuple[str | None, ...] | None = None
    """The adapter of each row in a mixed batch."""
    frozen: bool = False
    """Whether the adapters' parameters stay unchanged while these rows are set."""
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
        idle = {"calls": {}, "derived": None, "reached": None, "shared_input": None, "returned": [], "prefetched": None}
        return {**vars(self), **idle}

    def prompt_of(self, owner: str) -> Prompt:
        """Returns the prompt of a stack; a decoder's, behind an encoder, is its start token by default."""
        if self.decoder is None:
            return self.prompt or self.derived or Prompt()
        return (self.prompt or Prompt(end=1)) if owner == self.decoder else Prompt()

    def row_mask(self, name: str, like: Tensor) -> Tensor:
        """Returns True for the rows of `like` that use the adapter `name`, shaped to broadcast over it."""
        rows = self.rows or ()
        each = entries(like, len(rows))
        mask = torch.tensor([row == name for row in rows], device=like.device).repeat_interleave(each)
        return mask.view(-1, *[1] * (like.dim() - 1))
