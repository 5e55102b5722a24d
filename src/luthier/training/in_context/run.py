"""A sweep of sequence models over numbers of tasks and widths, from its specification to its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from transformers import set_seed

from luthier.core.files import claimed
from luthier.core.numerics.draws import draw_of
from luthier.core.numerics.resampling import mean_interval
from luthier.core.owner import owned
from luthier.core.records import recorded, replace_json
from luthier.training.adam_state import AdamState
from luthier.training.beginning import begin
from luthier.training.in_context.model import SequenceModel
from luthier.training.in_context.plot import plot
from luthier.training.in_context.spec import NEW, InContext
from luthier.training.in_context.tasks import Rows, read, sequences
from luthier.training.progress import quiet
from luthier.training.steps import Steps, trained

SPEC, RESULT, PICTURE = "gpicl.json", "learned.json", "phases.png"
WARMUP = 100
"""Steps over which the learning rate rises."""
FAILS, MEMORISES, GENERALISES = "fails to train", "memorises", "generalises"


@dataclass(frozen=True)
class InContextLearned:
    """What came of a sweep."""

    folder: Path
    cells: list[dict[str, Any]]
    """Of each model: `width`, `tasks`, `phase`, the last training `loss`, and for `seen` and `unseen` tasks the
    accuracy at each place (`by place`), in the `first` and the `last` quarter of the sequence, and `low` and `high` of
    the 95% interval of the last quarter over sequences."""
    chance: float


def learn_in_context(
    spec: InContext, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> InContextLearned:
    """Trains a model for each number of tasks and each width, and measures it on training tasks and on new ones.

    Both are measured on rows that no model was trained on. The folder gets `gpicl.json`, `learned.json`, `phases.png`
    and a state for each model. With `resume` a killed sweep goes on with the same bits. Raises `LuthierError` for data
    that does not serve before anything is trained.
    """
    console = Console(stderr=True, quiet=not progress)
    learned, held = read(spec)
    folder = claimed(spec.out, SPEC, "a sweep", resume, overwrite)
    with quiet(), owned(folder):
        leftovers = [*folder.glob("state-*"), folder / RESULT, folder / PICTURE]
        here = {"gpicl": spec.to_dict(), "data": digest(learned)}
        begin(folder, SPEC, here, "sweep", overwrite, leftovers)
        cells = _cells_so_far(folder)
        for width in spec.widths:
            for tasks in spec.tasks:
                if not any((cell["width"], cell["tasks"]) == (width, tasks) for cell in cells):
                    cells.append(_cell(spec, width, tasks, learned, held, folder, console))
                    replace_json(folder / RESULT, {"chance": 1 / spec.classes, "cells": cells})
        with recorded(folder / RESULT):  # some of the cells were read
            plot(spec, cells, folder / PICTURE)
        return InContextLearned(folder, cells, 1 / spec.classes)


def _cells_so_far(folder: Path) -> list[dict[str, Any]]:
    if not (folder / RESULT).is_file():
        return []
    with recorded(folder / RESULT) as told:
        return [{**cell, "width": cell["width"], "tasks": cell["tasks"]} for cell in told["cells"]]


def digest(rows: Rows) -> str:
    """Returns the sha256 of rows."""
    held = (np.ascontiguousarray(each.numpy()).tobytes() for each in (rows.x, rows.y))
    return hashlib.sha256(b"".join(held)).hexdigest()


def _cell(
    spec: InContext, width: int, tasks: int, learned: Rows, held: Rows, folder: Path, console: Console
) -> dict[str, Any]:
    """One model: trained, and measured."""
    set_seed(spec.seed)
    model = SequenceModel(width, spec)
    adam = AdamState({key: p for key, p in model.named_parameters() if p.requires_grad}, spec.lr)
    state, steps = folder / f"state-{width}-{tasks}", Steps(spec.steps, spec.save_every, f"lr ({spec.lr:g})")
    step = partial(_step, spec, model, adam, tasks, learned)
    told = trained(adam, state, steps, console, f"{width}-{tasks}", step)
    found = {name: accuracies(spec, model, held, numbers) for name, numbers in _measured_on(spec, tasks).items()}
    cell = {"width": width, "tasks": tasks, "phase": phase(found, 1 / spec.classes), "loss": told["loss"], **found}
    scores = "  ".join(f"{name} {each['last']:.2f}" for name, each in found.items())
    console.print(f"width {width}, {tasks:,} tasks: {cell['phase']}  {scores}", highlight=False)
    return cell


def _measured_on(spec: InContext, tasks: int) -> dict[str, list[int]]:
    count = range(spec.episodes)
    return {"seen": [number % tasks for number in count], "unseen": [NEW + number for number in count]}


def _step(spec: InContext, model: SequenceModel, adam: AdamState, tasks: int, rows: Rows, step: int) -> float:
    """A step of Adam on the cross-entropy at every place, with gradients clipped to the norm 1."""
    draw = draw_of(f"{spec.seed} tasks {step}")
    numbers = torch.randint(tasks, (spec.batch,), generator=draw).tolist()
    x, y = sequences(rows, numbers, spec, f"{spec.seed} step {step}")
    loss = functional.cross_entropy(model(x, y).flatten(0, 1), y.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(adam.params.values()), 1.0)
    for group in adam.adam.param_groups:
        group["lr"] = spec.lr * min(1.0, (step + 1) / WARMUP)
    adam.step()
    return float(loss.detach())


@torch.no_grad()
def accuracies(spec: InContext, model: SequenceModel, rows: Rows, numbers: Sequence[int]) -> dict[str, Any]:
    """Returns the accuracy of a sequence of each task at each place, in the first quarter, and in the last with its
    95% interval over sequences."""
    x, y = sequences(rows, numbers, spec, f"{spec.seed} measured {numbers[0]}")
    right: Tensor = model(x, y).argmax(-1).eq(y).double()
    quarter = spec.length // 4
    last = right[:, -quarter:].mean(1)
    low, high = mean_interval(np.asarray(last), spec.seed, share=True)
    ends = {"first": float(right[:, :quarter].mean()), "last": float(last.mean())}
    return {"by place": right.mean(0).tolist(), **ends, "low": low, "high": high}


def phase(found: Mapping[str, Mapping[str, Any]], chance: float) -> str:
    """Returns the phase of a model by what it gets right in the last quarter of sequences.

    It fails to train where training tasks are not answered above chance (by their interval), memorises where new tasks
    gain less than half of what training tasks gain over chance, and generalises otherwise.
    """
    seen, unseen = found["seen"], found["unseen"]
    if seen["low"] <= chance:
        return FAILS
    return MEMORISES if unseen["last"] - chance < (seen["last"] - chance) / 2 else GENERALISES
