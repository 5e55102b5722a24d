"""Steps that draw their rows by their number: progress, checkpoints, going on from these, a loss that is watched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier.core.errors import LuthierError
from luthier.core.progress import counted
from luthier.training.adam_state import AdamState

Told = dict[str, Any]
"""What is kept beside the tensors: the `steps` that were made, the `loss` of the last, and what a step adds."""
LINES = 5
"""Lines that are printed where there is no bar."""


@dataclass(frozen=True)
class Steps:
    """How many steps, and how often they are committed."""

    count: int
    save_every: int
    lower: str
    """The rates to lower where the loss is not finite, as `lr (0.1)`."""


def trained(
    adam: AdamState,
    folder: Path,
    steps: Steps,
    console: Console,
    title: str,
    step: Callable[[int], float],
    told: Told | None = None,
) -> Told:
    """Makes the steps that are left, each of which is given its number and returns its loss, and commits what stands to
    `folder`. What is `told` becomes what stood there, and is returned."""
    told = {} if told is None else told
    told |= {"steps": 0, "loss": math.nan} | (adam.load(folder) or {})
    bar = counted(console, title)
    bar.disable = not console.is_terminal
    with bar:
        task = bar.add_task("", total=steps.count, completed=told["steps"])
        for number in range(told["steps"], steps.count):
            value = step(number)
            if not math.isfinite(value):
                raise LuthierError(f"the loss became {value} at step {number + 1}; lower {steps.lower}.")
            told |= {"steps": number + 1, "loss": value}
            bar.update(task, completed=number + 1, description=f"loss {value:.4f}")
            if bar.disable and (number + 1) * LINES // steps.count > number * LINES // steps.count:
                console.print(f"{title}: step {number + 1}/{steps.count}  loss {value:.4f}", highlight=False)
            if (number + 1) % steps.save_every == 0 or number + 1 == steps.count:
                adam.save(folder, told)
    return told
