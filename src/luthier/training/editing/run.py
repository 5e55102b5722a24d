"""An edit, from its specification to its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from luthier import data, models
from luthier.core.adapters.control import disabled, trainable
from luthier.core.files import claimed
from luthier.core.numerics.resampling import mean_interval
from luthier.core.owner import owned
from luthier.core.progress import counted
from luthier.core.records import recorded, replace_json
from luthier.core.storage import store
from luthier.models import Loaded, licence_of
from luthier.training.beginning import begin
from luthier.training.editing.facts import Fact, read_whole
from luthier.training.editing.loss import measured, text_loss
from luthier.training.editing.place import NAME, put, searched
from luthier.training.editing.spec import Edit
from luthier.training.editing.write import Progress, Writer
from luthier.training.progress import quiet
from luthier.training.unread import tell

SPEC, RESULT, STATE, ADAPTER = "edit.json", "edited.json", "state", "adapter"


@dataclass(frozen=True)
class Edited:
    """What came of an edit."""

    folder: Path
    adapter: Path
    where: str
    facts: int
    trainable: int
    rounds: int
    steps: int
    figures: dict[str, dict[str, Any]]
    """By name: `before`, `after`, `count`, and `low` and `high` of the 95% interval after (over rows)."""
    model: Any
    processor: Any


def edit(spec: Edit, *, resume: bool = False, overwrite: bool = False, progress: bool = True) -> Edited:
    """Writes facts into one place of a model, and measures what it knows before and after.

    The folder gets `edit.json` (with the search), `edited.json`, `state/` and `adapter/`, which is taken off like any
    other: every tensor of the base stays as it was. With `resume` a killed edit goes on with the same bits. Raises
    `LuthierError` for facts that are none before the weights are loaded.
    """
    console = Console(stderr=True, quiet=not progress)
    facts, names = read_whole(spec.facts, spec.limit)
    if names:
        tell(console, names, spec.facts)
    held = texts(spec.held) if spec.held else []
    folder = claimed(spec.out, SPEC, "an edit", resume, overwrite)
    with quiet(), owned(folder):
        here = {"edit": spec.to_dict(), "facts": [vars(fact) for fact in facts]}
        begin(folder, SPEC, here, "edit", overwrite, (folder / name for name in (STATE, ADAPTER, RESULT)))
        loaded = models.load(spec.model, task="causal-lm", dtype=spec.dtype)
        where = _place(loaded, facts, spec, folder, console)
        put(loaded, spec.form, where)
        before = _measured(loaded, facts, held, spec, base=True)
        writer = Writer(loaded.model, loaded.processor, facts, spec.editing, spec.micro_batch)
        writer.load(folder / STATE)
        made = _written(writer, spec, folder, console)
        after = _measured(loaded, facts, held, spec, base=False)
        figures = {name: _figure(before[name], after[name], spec.seed) for name in after}
        return _finish(loaded, spec, folder, where, made, len(facts), figures)


def texts(source: str) -> list[str]:
    """Returns the texts of a source: of conversations, all that is said."""
    rows = data.load(source).rows
    return [row.text or "\n".join(str(turn["content"]) for turn in row.messages or []) for row in rows]


def _place(loaded: Loaded, facts: Sequence[Fact], spec: Edit, folder: Path, console: Console) -> str:
    """The place: given, found before an interruption, or searched now."""
    if spec.where is not None:
        return spec.where
    with recorded(folder / SPEC) as noted:
        if "search" in noted:
            return str(noted["search"]["where"])

    def told(tried: Any) -> None:
        shown = "  ".join(f"{name} {value:.2f}" for name, value in tried.scores.items())
        console.print(f"{tried.where}  {shown}", highlight=False, soft_wrap=True)

    where, tried = searched(loaded, facts, spec, told)
    listed = [{"where": each.where, **each.scores, "score": each.score} for each in tried]
    replace_json(folder / SPEC, {**noted, "search": {"where": where, "tried": listed}})
    console.print(f"place: {where}", highlight=False)
    return where


def _measured(loaded: Loaded, facts: Sequence[Fact], held: Sequence[str], spec: Edit, base: bool) -> dict[str, Any]:
    """What the model knows, with the adapter or without; locality is of the two beside one another."""
    model, words = loaded.model, loaded.processor
    with disabled(model) if base else nullcontext():
        found: dict[str, Any] = dict(measured(model, words, facts, spec.micro_batch, base))
        if held:
            found["held text loss"] = text_loss(model, words, held)
    return found


def _written(writer: Writer, spec: Edit, folder: Path, console: Console) -> Progress:
    if not console.is_terminal:
        return writer.write(spec.seed, folder / STATE, lambda at: _tell(console, at))
    with counted(console, "writing facts") as bar:
        task = bar.add_task("", total=None)
        return writer.write(
            spec.seed,
            folder / STATE,
            lambda at: bar.update(task, completed=at.rounds, description=f"loss {at.losses[-1]:.4f}"),
        )


def _tell(console: Console, at: Progress) -> None:
    if at.rounds < 5 or at.rounds % 5 == 0 or at.over:
        console.print(f"round {at.rounds}  loss {at.losses[-1]:.4f}  {at.steps} steps", highlight=False)


def _figure(before: Any, after: Any, seed: int) -> dict[str, Any]:
    if isinstance(after, float):
        return {"before": before, "after": after}
    rows = np.asarray(after, dtype=float)
    low, high = mean_interval(rows, seed, share=True)
    told = {"before": float(np.mean(before)), "after": float(rows.mean()), "count": len(rows)}
    return {**told, "low": low, "high": high}


def _finish(
    loaded: Loaded,
    spec: Edit,
    folder: Path,
    where: str,
    made: Progress,
    facts: int,
    figures: Mapping[str, dict[str, Any]],
) -> Edited:
    measured_: dict[str, Any] = {"steps": made.steps, "loss": made.losses[-1] if made.losses else None}
    measured_ |= {"task": "causal-lm", "edited": dict(figures), "facts": facts}
    store.save(
        loaded.model,
        folder / ADAPTER,
        NAME,
        base=spec.model,
        measured=measured_,
        base_license=licence_of(spec.model),
    )
    count = sum(p.numel() for p in trainable(loaded.model).values())
    told = {"where": where, "facts": facts, "trainable": count, "rounds": made.rounds, "steps": made.steps}
    replace_json(folder / RESULT, {**told, "losses": made.losses, "figures": dict(figures)})
    return Edited(
        folder=folder,
        adapter=folder / ADAPTER,
        figures=dict(figures),
        model=loaded.model,
        processor=loaded.processor,
        **told,
    )
