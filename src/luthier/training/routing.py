"""Training with a router: the balance loss of the form, and the load of experts over time as a table and a heat map."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback

from luthier.core.adapters.attach import find_state
from luthier.core.adapters.control import watched
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.objective import TASKS
from luthier.core.contracts.router import Route, Routed, RoutedBatch
from luthier.core.guard import guarded, written
from luthier.core.records import append_text, replace_text
from luthier.training.checkpoint import go_on

FILE, PLOT = "routing.csv", "routing.png"
COLUMNS = ("step", "layer", "site", "expert", "load", "balance")
WINDOWS = 100
"""About how many rows of the table an expert gets in a run."""


class Routers:
    """The routers of the adapter that is trained: their balance loss and their load since the last row of the table."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        state = find_state(model)  # none of a model that another library adapts
        components = [each for each in state.components if each.name == name] if state else []
        self.on = any(isinstance(each.form, Routed) for each in components)
        """Whether there is a router."""
        self.loads: dict[tuple[int | None, str], tuple[Tensor, int]] = {}
        """By (layer, site) the sum of the loads [experts] of batches, and how many these are."""
        self.balances: tuple[float, int] = (0.0, 0)
        self.step: dict[str, tuple[Tensor, int]] = {}
        """By site the same of the running step alone."""

    @contextmanager
    def watched(self) -> Iterator[list[Route]]:
        """Records where tokens are sent in the passes of the context; nothing without a router."""
        if not self.on:
            yield []
            return
        with watched(self.model) as routes:
            yield routes

    def balance(self, routes: Sequence[Route], batch: Mapping[str, Any]) -> Tensor | None:
        """Returns the balance loss of a batch, and notes the loads; None where there is none.

        Passes without gradients, as those of a reference are, do not count.
        """
        own = [each for each in routes if each.adapter == self.name and (each.logits.requires_grad or not _grad())]
        mask, tasks = batch.get("attention_mask"), batch.get(TASKS)
        about = RoutedBatch(mask.bool() if isinstance(mask, Tensor) else None, tasks)
        for each in own:
            logits = each.logits if each.form.by_task else about.tokens(each.logits)
            load = each.form.load(logits).cpu()
            self.loads[each.layer, each.path] = _added(self.loads.get((each.layer, each.path)), load)
            self.step[each.path] = _added(self.step.get(each.path), load)
        forms = list(dict.fromkeys(each.form for each in own))
        losses = [form.balance([each.logits for each in own if each.form == form], about) for form in forms]
        found = [loss for loss in losses if loss is not None]
        if not found:
            return None
        total = torch.stack(found).sum()
        self.balances = self.balances[0] + float(total.detach()), self.balances[1] + 1
        return total

    def tuners(self) -> list[TunerLayer]:
        """Returns a tuner layer of each group of sites with a router."""
        state = find_state(self.model)
        components = [each for each in state.components if each.name == self.name] if state and self.on else []
        return [t for each in components for t in each.tuners.values() if isinstance(t.form, Routed)]

    def begin(self) -> None:
        """Lets the forms note that training begins, on a first or a further task."""
        for tuner in self.tuners():
            assert isinstance(tuner.form, Routed)
            _write(tuner, tuner.form.at_start(tuner.own()))

    def note_step(self) -> None:
        """Lets the forms note what their experts bore in the step that is over, in all processes."""
        for tuner in self.tuners():
            assert isinstance(tuner.form, Routed)
            total, count = self.step.get(tuner.site.path, (None, 0))
            if total is not None:
                _write(tuner, tuner.form.after_step(tuner.own(), _over_processes(total / count)))
        self.step = {}

    def taken(self, step: int) -> list[list[Any]]:
        """Returns the rows of the table since the last ones, means over the batches."""
        balance = self.balances[0] / max(1, self.balances[1])
        rows = [
            [step, "" if layer is None else layer, site, expert, f"{float(load):.6g}", f"{balance:.6g}"]
            for (layer, site), (total, count) in self.loads.items()
            for expert, load in enumerate(total / count)
        ]
        self.loads, self.balances = {}, (0.0, 0)
        return rows


def _added(before: tuple[Tensor, int] | None, load: Tensor) -> tuple[Tensor, int]:
    return (load, 1) if before is None else (before[0] + load, before[1] + 1)


def _over_processes(load: Tensor) -> Tensor:
    if not dist.is_available() or not dist.is_initialized():
        return load
    device = torch.device("cuda") if dist.get_backend() == "nccl" else load.device
    total = load.to(device)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).cpu()


@torch.no_grad()
def _write(tuner: TunerLayer, values: Mapping[str, Tensor]) -> None:
    for key, value in values.items():
        tuner.own()[key].copy_(value)


def _grad() -> bool:
    return torch.is_grad_enabled()


class RoutingTable(TrainerCallback):
    """Writes `routing.csv`: the load of each expert at each site, about `WINDOWS` times in a run."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.every = folder, max(1, steps // WINDOWS)
        self.routers: Routers | None = None
        """Those of the trainer; set once it is there."""

    def on_train_begin(self, args, state, control, **kwargs):
        """A run that does not resume begins, on a first or a further task."""
        if self.routers is not None and not state.global_step:
            self.routers.begin()

    def on_step_end(self, args, state, control, **kwargs):
        """Writes the rows of a window."""
        if self.routers is not None:
            self.routers.note_step()
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.write(state.global_step, state.is_world_process_zero)

    def on_save(self, args, state, control, **kwargs):
        """Writes what a resumed run would no longer have."""
        self.write(state.global_step, state.is_world_process_zero)

    def write(self, step: int, main: bool) -> None:
        """Appends the rows since the last ones; only the main process writes."""
        rows = self.routers.taken(step) if self.routers is not None else []
        path = self.folder / FILE
        if not rows or not main:
            return
        with written(str(path), partial(go_on, self.folder)):
            text = io.StringIO()
            csv.writer(text).writerows([*([] if path.is_file() else [COLUMNS]), *rows])
            append_text(path, text.getvalue())


@dataclass(frozen=True)
class Load:
    """One row of the table."""

    step: int
    layer: int | None
    site: str
    expert: int
    load: float
    balance: float


def read(folder: Path) -> list[Load]:
    """Returns the rows of a run's table; none where it has no router. A last row cut short by a kill is left out."""
    path = folder / FILE
    if not path.is_file():
        return []
    with guarded(f"{path} cannot be read"):
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        whole = [row for row in rows[1:] if len(row) == len(COLUMNS)]
        return [Load(int(a), int(b) if b else None, c, int(d), float(e), float(f)) for a, b, c, d, e, f in whole]


def cut(folder: Path, step: int) -> None:
    """Drops the rows after `step`, which a resumed run writes anew."""
    rows = read(folder)
    if rows:
        kept = [f"{r.step},{'' if r.layer is None else r.layer},{r.site},{r.expert},{r.load:.6g},{r.balance:.6g}"
                for r in rows if r.step <= step]  # fmt: skip
        replace_text(folder / FILE, "\n".join([",".join(COLUMNS), *kept]) + "\n")


def plot(rows: Sequence[Load], path: Path, title: str) -> None:
    """Draws the loads over the steps: a row for each expert of each block (the mean of its sites)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid, labels, steps = grid_of(rows)
    figure = Figure(figsize=(8, min(18.0, 1.5 + 0.12 * len(labels))), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(shown, label="share of the routing weight")
    firsts = [i for i, (layer, expert) in enumerate(labels) if not expert]
    axes.set_yticks(firsts, [f"block {labels[i][0]}" if labels[i][0] >= 0 else "outside" for i in firsts], fontsize=7)
    for first in firsts[1:]:
        axes.axhline(first - 0.5, color="white", linewidth=0.8)
    ticks = range(0, len(steps), max(1, len(steps) // 8))
    axes.set_xticks(list(ticks), [str(steps[i]) for i in ticks])
    axes.set(xlabel="step", title=title)
    figure.savefig(path)


def grid_of(rows: Sequence[Load]) -> tuple[list[list[float]], list[tuple[int, int]], list[int]]:
    """Returns (loads [experts of blocks, steps], (block, expert) of each row with -1 outside the blocks, steps)."""
    sums: dict[tuple[int, int, int], list[float]] = {}
    for row in rows:
        sums.setdefault((-1 if row.layer is None else row.layer, row.expert, row.step), []).append(row.load)
    labels = sorted({(layer, expert) for layer, expert, _ in sums})
    steps = sorted({step for _, _, step in sums})
    cells = [[sums.get((*label, step), [float("nan")]) for step in steps] for label in labels]
    return [[sum(cell) / len(cell) for cell in line] for line in cells], labels, steps
