"""When a run is to be saved by the clock: long runs would lose much before the first tenth of their steps is done."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

FIRST, LATER = 60.0, 900.0
"""Seconds of training before the first checkpoint, and between two later ones, at most."""


class AsToldNow(TrainerCallback):
    """Saves as often as the run says now: a checkpoint says how often it was when that one was made."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts the number of today in place of the checkpoint's."""
        state.save_steps = args.save_steps


class ByTheClock(TrainerCallback):
    """Asks for a checkpoint where the last one, or the start, is too long ago; all processes as the first one says."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.last, self.most = time.monotonic(), FIRST

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks at the clock."""
        due = torch.tensor(float(time.monotonic() - self.last >= self.most), device=args.device)
        if args.world_size > 1:
            dist.broadcast(due, 0)
        if bool(due):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts it anew."""
        self.last, self.most = time.monotonic(), LATER
