"""What a pass through an adapted model knows: prompts, rows, tasks, and who watches."""

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
    """What the adapted modules of one model know of the pass under way, and of those that a context is set for."""

    calls: dict[str, Call | None] = field(default_factory=dict)
    """The pass under way through each stack, by its owner's path."""
    prompt: Prompt | None = None
    """Where prompts end: told by `generate` or by the user."""
    derived: Prompt | None = None
    """Where prompts end: read off the labels of the pass under way."""
    decoder: str | None = None
    """Path of the decoder of an encoder-decoder."""
    rows: tuple[str | None, ...] | None = None
    """The adapter of each row, in a mixed batch."""
    frozen: bool = False
    """What the adapters of the rows hold does not change as long as the rows stand."""
    tasks: Told | None = None
    """The tasks of the rows, told around the pass or by it."""
    routes: list[Route] | None = None
    """What routed forms decide, while somebody watches."""
    reached: set[tuple[str, str]] | None = None
    """Sites seen by a probing pass, while it runs."""
    shared_input: SharedInput | None = None
    """The tensor that a probing pass is reading."""
    returned: list[tuple[nn.Module, Tensor, int]] = field(default_factory=list)
    """What layers returned in a probing pass, and its version then."""
    prefetched: PrefetchedOutputs | None = None
    """Outputs of the layers that are called next."""

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: the contexts that are set, and no pass, since it is under none."""
        idle = {"calls": {}, "derived": None, "reached": None, "shared_input": None, "returned": [], "prefetched": None}
        return {**vars(self), **idle}

    def prompt_of(self, owner: str) -> Prompt:
        """The prompt of a stack: a decoder's, behind an encoder, is its start token unless told."""
        if self.decoder is None:
            return self.prompt or self.derived or Prompt()
        return (self.prompt or Prompt(end=1)) if owner == self.decoder else Prompt()

    def row_mask(self, name: str, like: Tensor) -> Tensor:
        """True for the rows of `like` that use the adapter `name`, shaped to broadcast over it."""
        rows = self.rows or ()
        each = entries(like, len(rows))
        mask = torch.tensor([row == name for row in rows], device=like.device).repeat_interleave(each)
        return mask.view(-1, *[1] * (like.dim() - 1))
