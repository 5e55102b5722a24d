"""The command that repeats a federated run."""

from __future__ import annotations

import shlex
from typing import Any

from luthier.core.contracts.aggregation import Aggregation
from luthier.federating.spec import Federation
from luthier.methods.choices import COMPONENTS, usual
from luthier.training.command import NESTED, flag, flags
from luthier.training.spec import Run


def command(run: Run, method: Aggregation, federation: Federation) -> str:
    """Returns `luthier federate MODEL DATA --aggregation … --out …`: every setting that is not its default."""
    words = ["luthier", "federate", run.model, run.data, "--aggregation", method.name(), "--method", run.form.name()]
    words += flags(federation) + flags(run, but=NESTED)
    before: list[Any] = [federation, run, run.training]
    for part in (method, run.form):
        words += flags(part, beside=before)
        before.append(part)
    for name in (each for each in COMPONENTS if getattr(run, each) is not None):
        part = getattr(run, name)
        words += [f"--{name}", part.name()] if part.name() != usual(name) else []
        words += flags(part, beside=before)
        before.append(part)
    words += flag("epochs", run.training.epochs)  # of a round: another default than that of a run
    return shlex.join(words + flags(run.training, but=("epochs",)))
