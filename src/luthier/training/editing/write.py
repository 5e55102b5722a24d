"""Writing facts: Adam on what is attached, round by round, and going on exactly where it was killed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.core.adapters.control import trainable
from luthier.core.checks import WHOLE, boolean, many, number, record, whole
from luthier.core.contracts.editing import Editing
from luthier.core.errors import LuthierError
from luthier.training.adam_state import AdamState
from luthier.training.editing.facts import Fact, encoded, padded
from luthier.training.editing.loss import fact_losses, pad_of
from luthier.training.editing.prefix import prefix_of

SAVED = 10
"""Rounds of one batch between checkpoints; a round of several is always kept."""
KEPT = record({"rounds": whole(0), "steps": whole(0), "over": boolean, "losses": many(number, 0, WHOLE)})
"""What a checkpoint says of `Progress`."""


@dataclass
class Progress:
    """Where writing stands."""

    rounds: int = 0
    """Rounds that are done."""
    steps: int = 0
    """Steps that were made; skipped ones are not among them."""
    over: bool = False
    losses: list[float] = field(default_factory=list)
    """The mean loss of each round."""


class Writer:
    """Writes facts into what is attached to a model, in evaluation mode: nothing but the facts' order is drawn."""

    def __init__(self, model: nn.Module, tokenizer: Any, facts: Sequence[Fact], editing: Editing, size: int) -> None:
        """`size` rows go through a forward pass at a time."""
        self.model, self.editing, self.size = model, editing, size
        self.rows = [encoded(fact.prompt, fact.target, tokenizer, end=True) for fact in facts]
        self.pad = pad_of(tokenizer)
        self.prefix = prefix_of(model, self.rows, self.pad)
        self.adam = AdamState(trainable(model), editing.lr)
        self.params = self.adam.params
        self.progress = Progress()

    def step(self, places: Sequence[int]) -> float:
        """Makes a step on a batch of facts unless it is skipped; returns its mean loss before the step."""
        total = 0.0
        for start in range(0, len(places), self.size):
            part = places[start : start + self.size]
            with self.prefix.known(part) if self.prefix else nullcontext():
                losses = fact_losses(self.model, padded((self.rows[place] for place in part), self.pad))
            loss = losses.sum() / len(places)
            if not torch.isfinite(loss):
                raise LuthierError(f"the loss became {float(loss)}; lower lr ({self.editing.lr:g}).")
            loss.backward()
            total += loss.item()
        if self.editing.skips(total):
            self.adam.adam.zero_grad()
        else:
            self.adam.step()
            self.progress.steps += 1
        return total

    def write(self, seed: int, folder: Path | None = None, told: Callable[[Progress], Any] = id) -> Progress:
        """Goes through the rounds that are left; with a `folder` it is checkpointed there."""
        self.model.eval()
        progress, rounds = self.progress, self.editing.rounds(len(self.rows), seed)
        for batches in itertools.islice(rounds, progress.rounds, None):
            if progress.over:
                break
            losses: list[float] = []
            for places in batches:
                losses += [self.step(places)] * len(places)
                if self.editing.round_over(losses[-1]):
                    break
            progress.losses.append(sum(losses) / len(losses))
            progress.rounds += 1
            progress.over = self.editing.over(progress.losses[-1])
            told(progress)
            if folder is not None and (len(batches[0]) > 1 or progress.rounds % SAVED == 0):
                self.save(folder)
        if folder is not None:
            self.save(folder)
        return progress

    def save(self, folder: Path) -> None:
        """Commits tensors, moments and where it stands."""
        self.adam.save(folder, vars(self.progress))

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, if there is any."""
        told = self.adam.load(folder, KEPT)
        self.progress = Progress(**told) if told is not None else self.progress
