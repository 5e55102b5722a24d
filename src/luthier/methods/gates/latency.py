"""Latency: how much longer a forward pass takes with what fine-tuning added."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.contracts.examination import Batch
from luthier.core.contracts.gate import Gate, Probes
from luthier.core.sites.probe import eval_mode


@dataclass(frozen=True)
class Latency(Gate):
    """worsening = mean over repeats of t(θ')/t(θ₀) - 1, t the time of a forward pass over the rows, in seconds

    Both models read the same rows `repeats` times, in turns of a few passes so that a machine that slows down slows
    both; the null is the model before fine-tuning, timed again in the same turns. A merged adapter costs nothing.
    """

    paper = "Luthier's own; the floor is the bare base"
    unit: ClassVar[str] = "times the base"
    covers: ClassVar[tuple[str, ...]] = ("cost",)

    tolerance: float = 0.3
    """Largest share by which a pass may take longer."""
    repeats: int = 24
    """Passes of each model that are timed."""

    def check(self):
        super().check()
        self.within("repeats", 10)

    def look(self, subject):
        subject.examples(self.data or "")

    def measure(self, subject):
        batches, turns = subject.labelled(self.data or ""), 3
        each = -(-self.repeats // turns)
        before, after, null = [], [], []
        for _ in range(turns):
            with subject.before() as model:
                before += seconds(model, batches, each)
            with subject.after() as model:
                after += seconds(model, batches, each)
            with subject.before() as model:
                null += seconds(model, batches, each)
        unit = sorted(before)[len(before) // 2]
        return Probes(*(torch.tensor(times).double() / unit for times in (before, after, null)))


def seconds(model: nn.Module, batches: Sequence[Batch], repeats: int) -> list[float]:
    """Returns the time of each of `repeats` passes over the batches, behind one that warms up."""
    device = next(model.parameters()).device
    given = [{key: moved(value, device) for key, value in batch.items() if key != "labels"} for batch in batches]
    with eval_mode(model), torch.no_grad():
        return [_pass(model, given, device) for _ in range(repeats + 1)][1:]


def _pass(model: nn.Module, batches: Sequence[Batch], device: torch.device) -> float:
    start = time.perf_counter()
    for batch in batches:
        model(**batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def moved(value: Any, device: torch.device) -> Any:
    """Returns a tensor on the device; anything else as it is."""
    return value.to(device) if isinstance(value, Tensor) else value
