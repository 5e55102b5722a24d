"""`check`: the release check of a fine-tuned model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from luthier.core.contracts.gate import Gate
from luthier.core.errors import LuthierError
from luthier.core.families import ticked
from luthier.core.files import committed, free_folder
from luthier.core.paths import path_of
from luthier.core.records import finite, write_json
from luthier.core.version import __version__
from luthier.examining.check.gates import Named, checked, read_gates
from luthier.examining.check.page import page
from luthier.examining.check.subject import Means, subject_of
from luthier.examining.check.verdict import PASSES, TRIPPED, UNTOLD, Verdict, judged

JSON, HTML = "check.json", "check.html"
CODES = {PASSES: 0, TRIPPED: 3, UNTOLD: 4}
"""Exit codes of `luthier check`."""


@dataclass(frozen=True)
class Checked:
    """The verdicts on a model."""

    target: str
    verdicts: tuple[Verdict, ...]

    @property
    def outcome(self) -> str:
        """`tripped` where any gate is; else `too few probes` where any gate cannot tell; else `passes`."""
        found = {verdict.outcome for verdict in self.verdicts}
        return TRIPPED if TRIPPED in found else UNTOLD if UNTOLD in found else PASSES

    @property
    def checklist(self) -> dict[str, bool]:
        """What an evaluation should cover, and whether these gates did."""
        sampled = {"intervals"} if any(not verdict.gate.exact for verdict in self.verdicts) else set()
        seeds = {"seeds"} if any(verdict.other_seed is not None for verdict in self.verdicts) else set()
        return ticked(
            {"baseline", *sampled, *seeds, *(item for verdict in self.verdicts for item in verdict.gate.covers)}
        )

    @property
    def code(self) -> int:
        """The exit code: 0 passes, 3 tripped, 4 too few probes."""
        return CODES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "target": self.target,
            "outcome": self.outcome,
            "code": self.code,
            "luthier": __version__,
            "checklist": self.checklist,
            "gates": [verdict.to_dict() for verdict in self.verdicts],
        }

    def save(self, folder: str | Path) -> Path:
        """Writes check.json and check.html into a folder, which must be new or hold an earlier check."""
        target = free(folder)
        with committed(target) as temporary:
            write_json(temporary / JSON, finite(self.to_dict()))
            (temporary / HTML).write_text(
                page(self.target, self.outcome, self.verdicts, self.checklist), encoding="utf-8"
            )
        return target


def free(folder: str | Path) -> Path:
    """Returns the folder, which must be new, empty or an earlier check's, so that nothing is lost."""
    return free_folder(folder, JSON, "a check")


def check(
    target: str | Path,
    gates: str | Path | Mapping[str, Gate],
    *,
    base: nn.Module,
    processor: Any = None,
    task: str = "causal-lm",
    batch: int = 8,
    max_length: int = 1024,
    limit: int | None = None,
    seed: int = 0,
    other_seed: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: bool = False,
) -> Checked:
    """Returns whether the adapter or fine-tuned model in the folder `target` may be released, against the bare `base`.

    `gates` are a TOML file (see `luthier.examining.check.gates`) or gates by name. Rows are read for `task` and cut at
    `max_length` tokens; `limit` takes that many of each source, drawn by `seed`, which also draws the bootstrap. `base`
    is left as it was. `other_seed` is the folder of the same fine-tuning from another seed, whose worsening stands
    beside each verdict and decides nothing. `out` gets check.json and check.html. Raises `LuthierError` before the
    first gate is measured for gates that are unknown or lack their rows; `force` goes on with another base than the
    one of the adapter.
    """
    if batch < 1 or (limit is not None and limit < 1):
        raise LuthierError(f"batch is {batch} and limit {limit}; expected at least 1 each.")
    wanted: Named = (
        {key: checked(gate) for key, gate in gates.items()} if isinstance(gates, Mapping) else read_gates(gates)
    )
    if out is not None:
        free(out)
    means = Means(base, processor, task, batch, max_length, limit, seed)
    for source in dict.fromkeys(gate.data for gate in wanted.values() if gate.data):
        means.rows(source)
    if other_seed is not None and not path_of(other_seed).is_dir():
        raise LuthierError(f"no folder {other_seed} of another seed; give a run, an adapter's folder or a model's.")
    subject = subject_of(means, path_of(target), force=force)
    other = None if other_seed is None else subject_of(means, path_of(other_seed), force=force)
    console, verdicts = Console(stderr=True, quiet=not progress), []
    for name, gate in wanted.items():
        start = time.monotonic()
        console.print(f"measuring {name} …", highlight=False)
        verdict = judged(name, gate, gate.measure(subject), seed)
        beside = None if other is None else judged(name, gate, gate.measure(other), seed).worsening
        verdicts.append(replace(verdict, other_seed=beside, seconds=round(time.monotonic() - start, 1)))
    found = Checked(str(target), tuple(verdicts))
    if out is not None:
        found.save(out)
    return found
