"""Steps that draw their rows by their number: progress, checkpoints, going on from these, a loss that is watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier.core.checks import Check, number, record, whole
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
    kept: Mapping[str, Check] | None = None,
) -> Told:
    """Makes the steps that are left, each of which is given its number and returns its loss, and commits what stands to
    `folder`. What is `told` becomes what stood there, and is returned; `kept` checks what of it a step adds."""
    told = {} if told is None else told
    known = record({"steps": whole(0), "loss": number, **(kept or {})})
    told |= {"steps": 0, "loss": math.nan} | (adam.load(folder, known) or {})
    bar = counted(console, title)
    bar.disable = not console.is_terminal
    with bar:
        task = bar.add_task("", total=steps.count, completed=told["steps"])
        for done in range(told["steps"], steps.count):
            value = step(done)
            if not math.isfinite(value):
                raise LuthierError(f"the loss became {value} at step {done + 1}; lower {steps.lower}.")
            told |= {"steps": done + 1, "loss": value}
            bar.update(task, completed=done + 1, description=f"loss {value:.4f}")
            if bar.disable and (done + 1) * LINES // steps.count > done * LINES // steps.count:
                console.print(f"{title}: step {done + 1}/{steps.count}  loss {value:.4f}", highlight=False)
            if (done + 1) % steps.save_every == 0 or done + 1 == steps.count:
                adam.save(folder, told)
    return told
