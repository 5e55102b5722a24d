"""`metrics.jsonl`: one line per step, on disk at once, and cut back to the checkpoint on resuming."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

FILE = "metrics.jsonl"
NAMES = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm", "eval_loss": "eval_loss"}
"""Trainer's names of what is kept, with ours."""


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics; a last line cut short by a kill is left out."""
    path = folder / FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def cut(folder: Path, step: int) -> None:
    """Drops the lines after `step`; a resumed run writes them anew."""
    kept = [line for line in read(folder) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    temporary = folder / f".{FILE}"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / FILE)


class Metrics(TrainerCallback):
    """Writes `{"step", "epoch", "loss", "lr", "grad_norm", "tokens_per_second", "seconds"}` a step, and
    `{"step", "epoch", "eval_loss", "seconds"}` an evaluation. `seconds` leaves interruptions out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer: Any = None
        """Whose tokens are counted; set once it is there."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Goes on where the last line left off."""
        before = read(self.folder)
        self.start = time.monotonic() - (before[-1]["seconds"] if before else 0.0)
        self.last, self.tokens = time.monotonic(), 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Writes one line."""
        told = logs or {}
        kept = {ours: told[theirs] for theirs, ours in NAMES.items() if theirs in told}
        if not kept or not state.is_world_process_zero:
            return
        now = time.monotonic()
        if "loss" in kept and self.trainer.tokens:
            kept["tokens_per_second"] = round((self.trainer.tokens - self.tokens) / max(now - self.last, 1e-9), 1)
        self.last, self.tokens = now, self.trainer.tokens
        line = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), **kept}
        with open(self.folder / FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"seconds": round(now - self.start, 3)}) + "\n")
