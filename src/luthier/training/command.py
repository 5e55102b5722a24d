"""The command that repeats a run."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from luthier.methods.choices import COMPONENTS, usual
from luthier.training.spec import Run

NESTED = ("model", "data", "form", "training", "calibration", "also", *COMPONENTS)
"""Fields of a run that are not flags of their own name and value."""


def command(run: Run) -> str:
    """`luthier train MODEL DATA --method … --out …`: every setting that is not its default, as the shell takes it."""
    words = ["luthier", "train", run.model, run.data, "--method", run.form.name()]
    before: list[Any] = [run, run.training]
    words += flags(run.form, beside=before)
    words += [word for word in flags(run, but=NESTED) if word]
    before.append(run.form)
    for name in COMPONENTS:
        chosen = getattr(run, name)
        if chosen is not None:
            words += [f"--{name}", chosen.name()] if chosen.name() != usual(name) else []
            words += flags(chosen, beside=before)
            before.append(chosen)
    if run.also:
        words += ["--also", f"[{', '.join(each.to_toml() for each in run.also)}]"]
    words += flags(run.training) + flags(run.calibration, beside=before)
    return shlex.join(words)


def flags(value: Any, but: tuple[str, ...] = (), beside: Sequence[Any] = ()) -> list[str]:
    """Returns the flags of a dataclass's fields that differ from their defaults.

    A name that one of `beside` has too is told apart by the class's, as the command line does: `--calibration-seed`.
    One of the same class name has the setting in common with it, and was told before.
    """
    taken = {field.name for each in beside for field in dataclasses.fields(each)}
    namesakes = [each for each in beside if type(each).__name__ == type(value).__name__]
    common = {field.name for each in namesakes for field in dataclasses.fields(each)}
    found: list[str] = []
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if field.name not in (*but, *common) and given != field.default:
            name = f"{type(value).__name__.lower()}_{field.name}" if field.name in taken else field.name
            found += flag(field.metadata.get("called", name).lstrip("-"), given)
    return found


def flag(name: str, value: Any) -> list[str]:
    """Returns `--max-length 64`, `--truncate` or `--no-truncate`."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    if isinstance(value, tuple):
        return [word for each in value for word in (f"--{dashed}", str(each))]
    return [f"--{dashed}", str(value)]
