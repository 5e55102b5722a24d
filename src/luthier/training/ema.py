"""An exponential moving average of what is trained, which is what is evaluated and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from luthier.core.adapters.attach import find_state
from luthier.core.adapters.control import tensors
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded

AVERAGED = "averaged.safetensors"


class Ema(TrainerCallback):
    """Keeps a moving average of what is trained.

    θ̄ ← d θ̄ + (1 - d) θ behind every step, from the start of training (Polyak and Juditsky 1992; Tarvainen and Valpola
    2017, arXiv 1703.01780). Training goes on from θ; θ̄ is in the model while it is evaluated, and at the end.
    """

    def __init__(self, model: nn.Module, name: str, decay: float) -> None:
        self.model, self.name, self.decay = model, name, decay
        self.means: dict[str, Tensor] = {}

    def held(self) -> dict[str, nn.Parameter]:
        """What is averaged: the tensors of the adapter, of a model without one what is trained."""
        if find_state(self.model) is not None:
            return tensors(self.model, self.name)
        return {key: p for key, p in self.model.named_parameters() if p.requires_grad}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts at the parameters, unless a checkpoint has brought an average."""
        if not self.means:
            self.means = {key: p.detach().clone() for key, p in self.held().items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the average; indices are taken as they are."""
        for key, p in self.held().items():
            mean = self.means[key]
            if mean.is_floating_point():
                mean.lerp_(p.detach(), 1 - self.decay)
            else:
                mean.copy_(p.detach())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Has the average in the model while the context lasts."""
        if not self.means:
            yield
            return
        before = {key: p.detach().clone() for key, p in self.held().items()}
        self.apply()
        try:
            yield
        finally:
            self._put(before)

    def apply(self) -> None:
        """Puts the average into the model."""
        self._put(self.means)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for key, p in self.held().items():
            p.copy_(values[key])

    def save(self, folder: Path) -> None:
        """Writes the average beside a checkpoint's tensors."""
        save_file({key: t.cpu().contiguous() for key, t in self.means.items()}, folder / AVERAGED)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote; raises `LuthierError` for a checkpoint without it."""
        if not (folder / AVERAGED).is_file():
            raise LuthierError(f"{folder} holds no average (ema); the run was begun without one. Leave ema out.")
        with guarded(f"{folder / AVERAGED} cannot be read"):
            stored = load_file(folder / AVERAGED)
        own = self.held()
        if set(stored) != set(own):
            raise LuthierError(f"{folder / AVERAGED} belongs to another adapter.")
        self.means = {key: stored[key].to(p.device) for key, p in own.items()}
