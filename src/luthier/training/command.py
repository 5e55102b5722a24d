"""The command that repeats a run."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from luthier.training.spec import Run

NESTED = ("model", "data", "form", "objective", "training", "ranks", "init", "calibration", "update", "also")
"""Fields of a run that are not flags of their own name."""


def command(run: Run) -> str:
    """`luthier train MODEL DATA --method … --out …`: every setting that is not its default, as the shell takes it."""
    words = ["luthier", "train", run.model, run.data, "--method", run.form.name()]
    words += flags(run.form)
    words += [word for word in flags(run, but=NESTED) if word]
    if run.objective.name() != "sft":
        words += ["--objective", run.objective.name()]
    for name, chosen in (("ranks", run.ranks), ("init", run.init)):
        if chosen is not None:
            words += [f"--{name}", chosen.name(), *flags(chosen)]
    if run.update.name() != "adamw":
        words += ["--update", run.update.name(), *flags(run.update)]
    if run.also:
        words += ["--also", f"[{', '.join(each.to_toml() for each in run.also)}]"]
    words += flags(run.objective) + flags(run.training) + flags(run.calibration, beside=run.training)
    return shlex.join(words)


def flags(value: Any, but: tuple[str, ...] = (), beside: Any = None) -> list[str]:
    """The flags of a dataclass's fields that differ from their defaults.

    A name that `beside` has too is told apart by the class's, as the command line does: `--calibration-seed`.
    """
    taken = {field.name for field in dataclasses.fields(beside)} if beside is not None else set()
    found: list[str] = []
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if field.name not in but and given != field.default:
            name = f"{type(value).__name__.lower()}_{field.name}" if field.name in taken else field.name
            found += flag(name, given)
    return found


def flag(name: str, value: Any) -> list[str]:
    """`--max-length 64`, `--truncate` or `--no-truncate`."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    return [f"--{dashed}", str(value)]
