"""The outer steps of a meta-training, whatever an episode is: progress, checkpoints, and going on from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console

from luthier.core.errors import LuthierError
from luthier.core.numerics.resampling import mean_interval
from luthier.core.progress import counted
from luthier.training.adam_state import AdamState
from luthier.training.meta.spec import MetaRun


def trained(spec: MetaRun, adam: AdamState, folder: Path, console: Console, outer_step: Callable[[int], float]) -> None:
    """Makes the steps that are left, each of which gives its loss, and commits what stands to `folder`."""
    told = adam.load(folder) or {"steps": 0}
    bar = counted(console, folder.name.removeprefix("state-")) if console.is_terminal else None
    task = bar.add_task("", total=spec.steps, completed=told["steps"]) if bar else None
    if bar:
        bar.start()
    try:
        for step in range(told["steps"], spec.steps):
            value = outer_step(step)
            if not math.isfinite(value):
                raise LuthierError(f"the loss became {value} at step {step + 1}; lower lr ({spec.lr:g}) or inner_lr.")
            if bar and task is not None:
                bar.update(task, completed=step + 1, description=f"loss {value:.4f}")
            elif (step + 1) % max(1, spec.steps // 5) == 0:
                console.print(f"{folder.name}: step {step + 1}/{spec.steps}  loss {value:.4f}", highlight=False)
            if (step + 1) % spec.save_every == 0 or step + 1 == spec.steps:
                adam.save(folder, {"steps": step + 1})
    finally:
        if bar:
            bar.stop()


def interval(values: np.ndarray, seed: int) -> dict[str, float]:
    """Returns the mean `loss` of episodes [n], with `low` and `high` of its 95% interval."""
    low, high = mean_interval(values, seed)
    return {"loss": float(values.mean()), "low": low, "high": high}
