"""Chosen entries of a tensor, which an optimiser steps without the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Pack:
    """Some entries of a tensor, as the parameter that AdamW steps: its moments are as few."""

    def __init__(self, index: Tensor, whole: nn.Parameter) -> None:
        self.index = index
        self.held = nn.Parameter(whole.detach().take(index))

    def gather(self, whole: nn.Parameter) -> None:
        """Takes the entries and their gradients; the whole gradient is let go."""
        self.held.data = whole.detach().take(self.index)
        self.held.grad = None if whole.grad is None or not len(self.index) else whole.grad.take(self.index)
        whole.grad = None

    def scatter(self, whole: nn.Parameter) -> None:
        """Puts the entries back."""
        whole.put_(self.index, self.held)
        self.held.grad = None

    def moved(self, state: dict[str, Any], old: Tensor) -> dict[str, Any]:
        """Moments of the entries `old`, by entry: those that are gone drop out, newcomers are zero."""
        at = torch.searchsorted(old, self.index).clamp(max=max(len(old) - 1, 0))
        stays = old[at] == self.index
        return {k: torch.where(stays, t[at], 0) if t.shape == old.shape else t for k, t in state.items()}
