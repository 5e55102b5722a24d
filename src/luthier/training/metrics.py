"""`metrics.jsonl`: one line per step, on disk at once, and cut back to the checkpoint on resuming."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from luthier.core.guard import guarded, written
from luthier.core.records import append_text, finite, replace_text
from luthier.training.checkpoint import go_on

FILE = "metrics.jsonl"
NAMES = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm", "eval_loss": "eval_loss"}
"""Trainer's names of what is kept, with ours."""


LOSSES = ("loss", "eval_loss")
"""Figures that are read as NaN where they were none."""


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics; a last line cut short by a kill or a full disk is left out.

    Raises `LuthierError` for a line that is damaged.
    """
    path = folder / FILE
    with guarded(f"{path} cannot be read"):
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    return [_line(path, number, text) for number, text in enumerate(lines[:-1], 1)]


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    with guarded(f"{path}, line {number}, is damaged"):
        made = json.loads(text)
        if not (isinstance(made, dict) and type(made.get("step")) is int):
            raise ValueError("it is not an object with a step")
        made |= {key: math.nan for key in LOSSES if made.get(key, 0) is None}  # as JSON has no number for it
        if made.get("seconds", 0) is None:
            raise ValueError("its seconds are null")
        for value in (value for key, value in made.items() if key != "run" and value is not None):
            if isinstance(value, str):
                raise ValueError("a text stands where a number should")
            float(value)  # raises for what is none, and for whole numbers of 400 digits
        return made


def seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Returns how long a run had taken at the last of its lines."""
    return lines[-1].get("seconds") or 0.0 if lines else 0.0


def cut(folder: Path, step: int, runs: Collection[str | None]) -> None:
    """Drops the lines after `step`, which a resumed run writes anew, and those of another run than these (ids)."""
    kept = [line for line in read(folder) if line["step"] <= step and line.get("run") in runs]
    text = "".join(json.dumps(finite(line)) + "\n" for line in kept)
    replace_text(folder / FILE, text)


class Metrics(TrainerCallback):
    """Writes `{"step", "epoch", "loss", "lr", "grad_norm", "tokens_per_second", "seconds", "run"}` a step, and
    `{"step", "epoch", "eval_loss", "seconds", "run"}` an evaluation, each with the figures of the objective, which go
    by the names in `curves` (`eval_` before those of an evaluation). `seconds` leaves interruptions out; `run` is the
    run's id."""

    def __init__(self, folder: Path, run: str, curves: Sequence[Sequence[str]] = ()) -> None:
        self.folder, self.run = folder, run
        figures = [name for together in curves for name in together]
        self.names = {**NAMES, **{each: each for name in figures for each in (name, f"eval_{name}")}}
        self.trainer: Any = None
        """Whose tokens are counted; set once it is there."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Continues after the last line."""
        self.start = time.monotonic() - seconds(read(self.folder))
        self.last, self.tokens = time.monotonic(), 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Writes one line."""
        told = logs or {}
        kept = {ours: told[theirs] for theirs, ours in self.names.items() if theirs in told}
        if not kept or not state.is_world_process_zero:
            return
        now = time.monotonic()
        if "loss" in kept and self.trainer.tokens:
            kept["tokens_per_second"] = round((self.trainer.tokens - self.tokens) / max(now - self.last, 1e-9), 1)
        self.last, self.tokens = now, self.trainer.tokens
        line = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), **kept}
        line |= {"seconds": round(now - self.start, 3), "run": self.run}
        with written(str(self.folder / FILE), partial(go_on, self.folder)):
            append_text(self.folder / FILE, json.dumps(finite(line)) + "\n")
