"""The function `measure`: it measures the intrinsic dimension of data at every layer, and allocates ranks."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier import data as luthier_data
from luthier import models
from luthier.core.contracts.calibration import Calibration
from luthier.core.contracts.form import Form
from luthier.core.contracts.ranks import Ranks
from luthier.core.errors import LuthierError
from luthier.core.files import committed, free_folder
from luthier.core.records import write_json
from luthier.core.sites.collect import Measured
from luthier.core.version import __version__
from luthier.measuring.allocation import Allocation, allocate
from luthier.measuring.progress import told
from luthier.measuring.trial import trial
from luthier.methods.forms.lora import LoRA
from luthier.methods.ranks.gelora import GeLoRA

JSON, PLOT, TABLE = "measured.json", "measured.png", "README.md"


@dataclass(frozen=True)
class Measurement:
    """The result of a measurement: everything that the JSON, the plot and the table show."""

    model: str
    data: str
    task: str
    form: Form
    where: str
    rows: int
    """Rows of the data."""
    samples: int
    """Rows that were read."""
    parameters: int
    """Trainable parameters of the form at these ranks."""
    total: int
    """Parameters of the base."""
    ranks: dict[str, int]
    """By site."""
    evidence: dict[str, Any]
    seconds: float
    allocation: Allocation = field(repr=False, compare=False)
    """What `attach` takes: `lt.attach(model, report.allocation.form, ranks=report.allocation.ranks)`."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "model": self.model,
            "data": self.data,
            "task": self.task,
            "form": {"name": self.form.name(), "settings": self.form.to_dict()},
            "where": self.where,
            "rows": self.rows,
            "samples": self.samples,
            "parameters": self.parameters,
            "total": self.total,
            "seconds": round(self.seconds, 1),
            "luthier": __version__,
            **self.evidence,
        }

    def save(self, folder: str | Path) -> Path:
        """Writes measured.json and measured.png into a folder, which must be new or hold an earlier measurement."""
        from luthier.measuring.plot import plot

        target = free(folder)
        with committed(target) as temporary:
            write_json(temporary / JSON, self.to_dict())
            plot(self.to_dict(), temporary / PLOT)
        return target


def free(folder: str | Path) -> Path:
    """Returns the folder, which must be new, empty or an earlier measurement's, so that nothing is lost."""
    return free_folder(folder, JSON, "a measurement")


def measure(
    model: str,
    data: str,
    *,
    form: Form | None = None,
    where: str | None = None,
    ranks: Ranks | None = None,
    budget: str | None = None,
    task: str | None = None,
    calibration: Calibration | None = None,
    max_length: int = 1024,
    dtype: str = "float32",
    crosscheck: bool = True,
    limit: int | None = None,
    skip_bad_rows: bool = False,
    columns: str | None = None,
    progress: bool = True,
) -> Measurement:
    """Reads a sample of `data` through `model` and allocates ranks for `form` (LoRA unless told).

    `ranks` is what allocates (GeLoRA unless told), within `budget`. Rows of more than `max_length` tokens are cut.
    `columns` says which columns are meant where the data call them otherwise (`text=body,label=category`). With
    `crosscheck`, two estimators of scikit-dimension stand beside every dimension, where it is installed.
    Raises `LuthierError` for whatever does not fit, before the weights are read where that can be known.
    """
    from luthier.data.encode import pieces_of
    from luthier.data.labels import labels_in_order

    start = time.monotonic()
    form = form if form is not None else LoRA()
    ranks = ranks if ranks is not None else GeLoRA()
    settings, console = (calibration or Calibration()).seeded(0), Console(stderr=True, quiet=not progress)
    if settings.source is not None:
        raise LuthierError("a measurement reads the data it is given; leave source out of the calibration.")
    examples = luthier_data.load(
        data, task=task, skip_bad_rows=skip_bad_rows, limit=limit, seed=settings.seed or 0, named=columns
    )
    if examples.unread:
        console.print(f"not read: {', '.join(examples.unread)}", highlight=False, markup=False)
    processor, positions = trial(model, examples.task, form, where, ranks, budget)
    loaded = models.load(model, task=examples.task, dtype=dtype, labels=examples.labels)
    features = luthier_data.encode_all(
        examples,
        processor,
        task=examples.task,
        max_length=max_length,
        labels=examples.labels,
        truncate=True,
        positions=positions,
    )
    features = labels_in_order(features, examples.labels, loaded.model.config)
    allocation = allocate(
        loaded.model,
        form,
        where,
        ranks=ranks,
        budget=budget,
        features=features,
        collator=luthier_data.collator_for(examples.task, loaded.processor),
        calibration=settings,
        new=loaded.new_modules,
        data=f"{examples.fingerprint} {examples.task} {max_length} True{pieces_of(features)}",
        console=console,
    )
    evidence: dict[str, Any] = allocation.evidence
    if crosscheck and "boundaries" in evidence:
        evidence = evidence | {"boundaries": _crosschecked(evidence["boundaries"], allocation.stats, console)}
    return Measurement(
        model=model,
        data=data,
        task=examples.task,
        form=form,
        where=form.where if where is None else where,
        rows=len(features),
        samples=min(settings.samples, len(features)),
        parameters=evidence["spent"],
        total=sum(p.numel() for p in loaded.model.parameters()),
        ranks=evidence["ranks"],
        evidence=evidence,
        seconds=time.monotonic() - start,
        allocation=allocation,
    )


def _crosschecked(boundaries: dict[str, Any], stats: Measured, console: Console) -> dict[str, Any]:
    """The boundaries with what other estimators say of the same points; nothing of a finite set."""
    if importlib.util.find_spec("skdim") is None:
        console.print("no cross-check: pip install 'luthier[dimension]' for two other estimators", highlight=False)
        return boundaries
    from luthier.core.numerics.crosscheck import crosscheck

    with told(console, "cross-checking") as shown:
        return {
            path: found | {"crosscheck": crosscheck(stats[path]["states"]) if found["value"] else {}}
            for path, found in shown(list(boundaries.items()))
        }
