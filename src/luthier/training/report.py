"""The overview before training: what is trained, on what data, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from luthier.core.adapters.attach import state_of
from luthier.core.adapters.control import describe, tensors
from luthier.core.adapters.training_plan import active_groups, training_plan
from luthier.core.contracts.component import Component
from luthier.core.device import device_of, shown
from luthier.core.sites.pictures import sites_by_part
from luthier.core.sites.structure import base_parameters
from luthier.data import sizes_of
from luthier.methods.choices import COMPONENTS, usual
from luthier.training.estimate import Memory
from luthier.training.prepare import Prepared
from luthier.training.spec import Run

MIB = 2**20
SHOWN = 10
"""Classes that are named."""


@dataclass(frozen=True)
class Plan:
    """The figures of a planned run: steps, parameters, tokens and bytes."""

    steps: int
    per_epoch: int
    """Steps of an epoch."""
    held: int
    """Parameters of the form that the update may train."""
    trainable: int
    """Parameters that some step trains."""
    active: int
    """Parameters that the first step trains."""
    total: int
    """Parameters of the model, without the adapter."""
    disk: int
    """Bytes of the saved adapter."""
    tokens: int
    """Tokens of an epoch (0 for pictures and sounds)."""
    learned: int
    """Tokens in the loss, of an epoch (0 where the labels are no tokens)."""
    longest: int
    longest_row: int
    shortened: int
    """Rows that lost tokens to `truncate`."""


def steps_of(run: Run, rows: int, processes: int) -> tuple[int, int]:
    """Returns (steps of the run, steps of an epoch)."""
    settings = run.training
    batches = math.ceil(math.ceil(rows / settings.batch) / processes)
    per_epoch = math.ceil(batches / settings.accumulate)
    return settings.steps or math.ceil(settings.epochs * per_epoch), per_epoch


def plan_of(run: Run, prepared: Prepared, model: Any, steps: tuple[int, int]) -> Plan:
    """Returns the plan of a run whose adapter is attached to `model`."""
    held = tensors(model, run.name).values()
    plan = training_plan(model, steps[0], name=run.name, seed=run.training.seed)
    trained = sum(p.numel() for p in held if p.requires_grad)
    active = sum(p.numel() for place in active_groups(run.update, plan, 0) for p in place.params.values())
    sizes = sizes_of(prepared.train)
    longest = int(sizes.length.argmax())
    return Plan(
        steps=steps[0],
        per_epoch=steps[1],
        held=trained,
        trainable=trained if run.update.changes else active,
        active=active,
        total=sum(p.numel() for _, p in base_parameters(model)),
        disk=sum(p.numel() * p.element_size() for p in held),
        tokens=int(sizes.length.sum()),
        learned=int(sizes.learned.sum()),
        longest=int(sizes.length[longest]),
        longest_row=int(sizes.row[longest]),
        shortened=int(sizes.cut.sum()),
    )


def overview(
    run: Run, prepared: Prepared, model: Any, plan: Plan, memory: Memory, computed: Mapping[str, str | None]
) -> Group:
    """Returns the two tables that are printed before training; `computed` says how batches and blocks are, where there
    is something to say."""
    more = parts(model) | {name: told for name, told in computed.items() if told}
    return Group(sites(describe(model)), figures(run, prepared, plan, needed(memory, plan), more))


def needed(memory: Memory, plan: Plan) -> Memory:
    """Returns the memory of a step where only what the update trains has gradients and moments."""
    return replace(memory, optimiser=memory.optimiser * plan.active // max(1, plan.held))


def parts(model: Any) -> dict[str, str]:
    """Returns the line that says in which parts of a model that also sees or hears the adapted sites are."""
    paths = [site.path for component in state_of(model).components for site in component.sites]
    told = sites_by_part(model, paths)
    return {"parts": told} if told else {}


def sites(rows: Sequence[dict[str, Any]]) -> Table:
    """Returns the table of adapted sites by type."""
    table = Table(title="what is trained", title_justify="left", box=None, pad_edge=False)
    for name in ("form", "site"):
        table.add_column(name)
    ranked = any(row["ranks"] for row in rows)
    for name in ("sites", "in", "out", *(["ranks"] if ranked else []), "parameters"):
        table.add_column(name, justify="right")
    for row in rows:
        sites, d_in, d_out, count = (f"{row[key]:,}" for key in ("sites", "d_in", "d_out", "parameters"))
        table.add_row(row["form"], row["type"], sites, d_in, d_out, *([span(row["ranks"])] if ranked else []), count)
    return table


def span(ranks: Sequence[int]) -> str:
    """Returns `1 to 5, mean 1.4`, or the one number; nothing of nothing."""
    if len(set(ranks)) < 2:
        return str(ranks[0]) if ranks else ""
    return f"{min(ranks)} to {max(ranks)}, mean {sum(ranks) / len(ranks):.2g}"


def figures(run: Run, prepared: Prepared, plan: Plan, memory: Memory, more: dict[str, str]) -> Table:
    """Returns the table of sizes, steps and memory, with `more` lines ahead."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in {**more, **figures_told(run, prepared, plan, memory)}.items():
        table.add_row(name, Text(text))
    for note, count in prepared.told.items():
        table.add_row("note", Text(f"{note}: {count}"))
    return table


def figures_told(run: Run, prepared: Prepared, plan: Plan, memory: Memory) -> dict[str, str]:
    """Returns `{what it is: the figure in words}` of sizes, steps and memory."""
    settings = run.training
    lines = {
        "trainable": f"{plan.trainable:,} of {plan.total:,} ({100 * plan.trainable / plan.total:.3g}%)",
        "adapter on disk": f"{plan.disk / MIB:.2f} MiB",
        "memory, estimate": f"{memory.total / MIB:,.0f} MiB: weights {memory.weights / MIB:,.0f}, gradients and "
        f"optimiser {memory.optimiser / MIB:,.1f}, activations {memory.activations / MIB:,.0f}",
        "rows": f"{len(prepared.train):,} to train on, {len(prepared.evaluation):,} held out" + skipped(prepared, plan),
        "steps": f"{plan.steps:,} of {settings.batch} x {settings.accumulate} rows ({plan.per_epoch:,} an epoch)",
        "computed": f"{shown(device_of())}, {settings.precision}",
        "settings": resolved_settings(run),
    }
    if run.update.name() != "adamw":
        lines["update"] = (
            f"{run.update.name()}: the first step trains {plan.active:,} of the form's {plan.held:,} numbers"
        )
    if plan.tokens:
        learned = f", of which {plan.learned:,} in the loss" if plan.learned and run.objective.evaluates else ""
        lines["tokens an epoch"] = f"{plan.tokens:,}{learned}"
        lines["longest row"] = f"{plan.longest:,} tokens (row {plan.longest_row})"
    if (rollouts := run.objective.rollouts(plan.steps, settings.seed)) is not None:
        count = settings.batch * settings.accumulate * rollouts.group
        lines["sampled"] = f"{count:,} answers per step, of at most {rollouts.max_tokens:,} tokens"
    return lines | notes(prepared)


def resolved_settings(run: Run) -> str:
    """Returns all settings that a run trains with: of the form, of other components, and of training."""
    settings = run.training
    parts = [(run.form.name(), run.form), *((key, getattr(run, key)) for key in COMPONENTS)]
    parts += [(targeted.form.name(), targeted.form) for targeted in run.also]
    told = [
        (f"{key} {part.name()}" if key != part.name() else key) + _inside(part)
        for key, part in parts
        if part is not None and not (key in COMPONENTS and part.name() == usual(key))
    ]
    whose = f"{run.form.name()}'s own" if settings.lr is None else "as told"
    rates = f"learning rate {run.lr:g} ({whose}), {settings.schedule}, warm-up {settings.warmup:g}"
    return "; ".join([*told, f"{rates}, weight decay {settings.weight_decay:g}, clip {settings.clip:g}"])


def _inside(part: Component) -> str:
    """` (rank 8, alpha 16)`: a component's own settings, and of those that all share what is set."""
    shown = [
        f"{key} {value}"
        for key, (_, each) in part.settings().items()
        if (value := getattr(part, key)) is not None and not (each.kw_only and value == each.default)
    ]
    return f" ({', '.join(shown)})" if shown else ""


def notes(prepared: Prepared) -> dict[str, str]:
    """Returns notes about the rows that are worth knowing before training."""
    held, layout, found = prepared.held, prepared.examples.layout, {}
    labels = prepared.examples.labels
    if labels is not None:
        found["classes"] = f"{len(labels):,}: {', '.join(labels[:SHOWN])}" + (", …" if len(labels) > SHOWN else "")
    if prepared.unread:
        found["not read"] = ", ".join(prepared.unread)
    if held is not None and held.layout != layout:
        found["held out"] = f"rows of another layout: {held.layout}, where those to train on are {layout}"
    counts = np.unique(sizes_of(prepared.train).row, return_counts=True)[1]
    pieces = counts[counts > 1]
    if layout == "text" and len(pieces):
        found["long texts"] = (
            f"{len(pieces):,} cut into {pieces.sum():,} pieces, each a row of its own; no token is lost"
        )
    return found


def skipped(prepared: Prepared, plan: Plan) -> str:
    """Describes rows that were skipped or cut."""
    bad = len(prepared.examples.skipped) + prepared.dropped
    gone = f", {bad:,} bad ones left out" if bad else ""
    gone += f", chosen from {prepared.selected['selected_of']:,}" if prepared.selected else ""
    return gone + (f", {plan.shortened:,} cut to fit" if plan.shortened else "")
