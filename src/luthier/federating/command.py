"""The command that repeats a federated run."""

from __future__ import annotations

import shlex
from typing import Any

from luthier.core.contracts.aggregation import Aggregation
from luthier.federating.spec import Federation
from luthier.training.command import NESTED, USUAL, flag, flags
from luthier.training.spec import Run

PARTS = ("update", "objective")
"""Parts of a run that a federation may choose."""


def command(run: Run, method: Aggregation, federation: Federation) -> str:
    """`luthier federate MODEL DATA --aggregation … --out …`: every setting that is not its default."""
    words = ["luthier", "federate", run.model, run.data, "--aggregation", method.name(), "--method", run.form.name()]
    words += flags(federation) + flags(run, but=NESTED)
    before: list[Any] = [federation, run, run.training]
    for part in (method, run.form, *(getattr(run, name) for name in PARTS)):
        name = next((each for each in PARTS if getattr(run, each) is part), None)
        if name is not None and part.name() != USUAL[name]:
            words += [f"--{name}", part.name()]
        words += flags(part, beside=before)
        before.append(part)
    words += flag("epochs", run.training.epochs)  # of a round: another default than that of a run
    return shlex.join(words + flags(run.training, but=("epochs",)))
