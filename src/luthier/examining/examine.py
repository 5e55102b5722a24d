"""The function `examine`: it measures what fine-tuning did to a model, beside a null."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from luthier import data as luthier_data
from luthier.core.contracts.component import find
from luthier.core.contracts.examination import Examination, Report
from luthier.core.errors import LuthierError
from luthier.core.files import committed, free_folder
from luthier.core.paths import path_of
from luthier.core.records import finite, write_json
from luthier.core.version import __version__
from luthier.data import Examples
from luthier.examining.check.subject import Means
from luthier.examining.pair import batches_of, pair_of

JSON, PLOT = "examined.json", "examined.png"


@dataclass(frozen=True)
class Examined:
    """The result of an examination: a report, and what was examined."""

    by: Examination
    target: str
    data: tuple[str, ...]
    report: Report
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "examination": self.by.name(),
            "settings": self.by.to_dict(),
            "target": self.target,
            "data": list(self.data),
            "seconds": round(self.seconds, 1),
            "luthier": __version__,
            **self.report.to_dict(),
        }

    def save(self, folder: str | Path) -> Path:
        """Writes examined.json and examined.png into a folder, which must be new or hold an earlier examination."""
        from luthier.examining.plot import plot

        target = free(folder)
        with committed(target) as temporary:
            write_json(temporary / JSON, finite(self.to_dict()))
            plot(self.to_dict(), temporary / PLOT)
        return target


def free(folder: str | Path) -> Path:
    """Returns the folder, which must be new, empty or an earlier examination's, so that nothing is lost."""
    return free_folder(folder, JSON, "an examination")


def examine(
    target: str | Path,
    by: str | Examination = "intruders",
    *,
    base: nn.Module,
    processor: Any = None,
    data: str | Sequence[str] = (),
    task: str = "causal-lm",
    batch: int = 8,
    max_length: int = 1024,
    limit: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: bool = False,
) -> Examined:
    """Examines what fine-tuning did: the adapter or model in the folder `target` against the bare `base`.

    `by` is what is measured. Some examinations read `data` (one source or several), which `processor` prepares for
    `task`, cut at `max_length` tokens; `limit` draws that many rows of each. `base` is left as it was. `out` gets
    examined.json and examined.png. Raises `LuthierError` before any work for what does not fit; `force` goes on with
    another base than the one that `target` was fitted on.
    """
    start, console = time.monotonic(), Console(stderr=True, quiet=not progress)
    made = find("examinations", by)() if isinstance(by, str) else by
    if not isinstance(made, Examination):
        raise LuthierError(f"{made.name()} is not an examination.")
    if out is not None:
        free(out)
    sources = (data,) if isinstance(data, str) else tuple(data)
    check_data(made, sources, batch)
    examples = _read(made, sources, processor, task, limit)
    batches = batches_of(examples, base, processor, task, batch, max_length)
    pair = pair_of(base, path_of(target), batches, task, console, force=force)
    means = Means(base, processor, task, batch, max_length, limit, 0)
    pair = replace(pair, examples=examples, batches=means.batches, write=means.write)
    with torch.no_grad():
        report = made.measure(pair)
    found = Examined(made, str(target), sources, report, time.monotonic() - start)
    if out is not None:
        found.save(out)
    return found


def check_data(by: Examination, sources: Sequence[str], batch: int) -> None:
    """Raises unless there are data where they are read, and none where they are not."""
    if by.reads and not sources:
        raise LuthierError(f"{by.name()} reads rows; give data (--data).")
    if sources and not by.reads:
        raise LuthierError(f"{by.name()} looks at weights alone; leave data out.")
    if batch < 1:
        raise LuthierError(f"batch is {batch}; expected at least 1.")


def _read(by: Examination, sources: Sequence[str], processor: Any, task: str, limit: int | None) -> dict[str, Examples]:
    """The rows by the shortest name that tells their sources apart."""
    if sources and processor is None:
        raise LuthierError("data need a processor, as `luthier.model` loads it beside the model.")
    stems = [Path(each).stem for each in sources]
    names = stems if len(set(stems)) == len(stems) else sources
    options: dict[str, Any] = {"task": task, "limit": limit, "columns": by.columns}
    found = {name: luthier_data.load(each, **options) for name, each in zip(names, sources, strict=True)}
    if by.asks and any(row.messages is None for each in found.values() for row in each.rows):
        raise LuthierError(f"{by.name()} has the model write answers; give rows of prompts with their answers.")
    return found
