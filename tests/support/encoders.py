"""Rows and a model for objectives that train no language model: classes of texts, or texts that belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import luthier as lt
from luthier import data, models
from luthier.core.contracts.objective import Objective
from luthier.training import Run, Training
from luthier.training.prepare import prepare
from support.tiny import save_model, sums, write_rows


def batch_for(objective: Objective, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A tiny BERT with a LoRA for the objective's task, and a batch of six rows as it shapes them."""
    near = [{"anchor": row["prompt"], "positive": f"is {row['completion']}"} for row in sums(12)]
    labelled = [{"text": row["prompt"], "label": "ab"[i % 3 > 0]} for i, row in enumerate(sums(12))]
    source = write_rows(folder / "rows.jsonl", near if "texts" in objective.reads else labelled)
    base = folder / "bert"
    run = Run(str(base) if base.is_dir() else save_model(base, "bert"), source, lt.LoRA(rank=2), objective=objective,
              out=str(folder / "run"), training=Training(eval_fraction=0))  # fmt: skip
    prepared = prepare(run)
    loaded = models.load(run.model, task=prepared.task, labels=prepared.examples.labels)
    rows = data.collator_for(prepared.task, prepared.processor)(list(prepared.train[:6]))
    rows.pop("rows")
    return lt.attach(loaded.model, run.form).eval(), rows
