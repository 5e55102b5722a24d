"""Runs over rows that an objective reads, with a model and a form that it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import luthier as lt
from luthier import data, models
from luthier.core.contracts.objective import Objective
from luthier.core.errors import LuthierError
from luthier.training import Run, Training
from luthier.training.prepare import prepare
from support.tiny import pairs, save_model, sums, write_rows


def run_of(folder: Path, chosen: Objective, name: str = "run") -> tuple[Run, lt.Form]:
    """A run over rows with every column that the objective reads, and a form that it trains."""
    form: lt.Form = lt.LoRA(rank=4)
    kind, rows = "llama", pairs(12)
    if not chosen.serves("causal-lm"):
        kind, rows = "bert", [{"text": row["prompt"], "label": "ab"[i % 3 > 0]} for i, row in enumerate(sums(12))]
        if "texts" in chosen.reads:
            rows = [{"anchor": row["prompt"], "positive": f"is {row['completion']}"} for row in sums(12)]
    elif "answers" in chosen.reads:
        rows = [
            row | {"task": "ab"[i % 2], "rationale": f"{i} is odd", "hint": "add"} for i, row in enumerate(sums(12))
        ]
    try:
        chosen.check_form(form)
    except LuthierError:
        form = lt.MeteoRA(experts=("a", "b"), rank=4)
    source, base = write_rows(folder / "rows.jsonl", rows), folder / kind
    model = str(base) if base.is_dir() else save_model(base, kind)
    return Run(model, source, form, objective=chosen, out=str(folder / name), training=Training(eval_fraction=0)), form


def batch_for(chosen: Objective, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The run's model with its form, in eval mode, and a batch of six rows as the objective shapes them."""
    run, form = run_of(folder, chosen)
    prepared = prepare(run)
    loaded = models.load(run.model, task=prepared.task, labels=prepared.examples.labels)
    rows = data.collator_for(prepared.task, prepared.processor)(list(prepared.train[:6]))
    rows.pop("rows")
    return lt.attach(loaded.model, form).eval(), rows
