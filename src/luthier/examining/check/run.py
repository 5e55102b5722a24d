"""`check`: the release check of a fine-tuned model."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from luthier.core.contracts.gate import Gate, Subject
from luthier.core.errors import LuthierError
from luthier.core.families import ticked
from luthier.core.files import committed, free_folder
from luthier.core.guard import reason
from luthier.core.paths import path_of
from luthier.core.records import finite, write_json
from luthier.core.version import __version__
from luthier.examining.check.gates import Named, checked, read_gates
from luthier.examining.check.page import page
from luthier.examining.check.subject import Means, subject_of
from luthier.examining.check.verdict import PASSES, TRIPPED, UNMEASURED, UNTOLD, Verdict, judged, unmeasured

JSON, HTML = "check.json", "check.html"
CODES = {TRIPPED: 3, UNMEASURED: 5, UNTOLD: 4, PASSES: 0}
"""Exit codes of `luthier check`, the gravest outcome first."""


@dataclass(frozen=True)
class Checked:
    """The verdicts on a model."""

    target: str
    verdicts: tuple[Verdict, ...]

    @property
    def outcome(self) -> str:
        """`tripped` where any gate is; else `not measured` where any failed; else `too few probes`; else `passes`."""
        found = {verdict.outcome for verdict in self.verdicts}
        return next(outcome for outcome in CODES if outcome in found)

    @property
    def checklist(self) -> dict[str, bool]:
        """What an evaluation should cover, and whether these gates did."""
        known = [verdict for verdict in self.verdicts if verdict.outcome != UNMEASURED]
        sampled = {"intervals"} if any(not verdict.gate.exact for verdict in known) else set()
        seeds = {"seeds"} if any(verdict.other_seed is not None for verdict in known) else set()
        compared = {"baseline"} if known else set()
        return ticked({*compared, *sampled, *seeds, *(item for verdict in known for item in verdict.gate.covers)})

    @property
    def code(self) -> int:
        """The exit code: 0 passes, 3 tripped, 4 too few probes, 5 not measured."""
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
    first gate is measured for gates that are unknown, lack their rows or cannot use them, and for a `target` or another
    seed that does not load (another base, damaged tensors); a gate that fails while it is measured has the outcome `not
    measured` and the reason, and with LUTHIER_DEBUG its traceback is printed. `force` goes on with another base than
    the one of the adapter.
    """
    if batch < 1 or (limit is not None and limit < 1):
        raise LuthierError(f"batch is {batch} and limit {limit}; expected at least 1 each.")
    wanted: Named = (
        {key: checked(gate) for key, gate in gates.items()} if isinstance(gates, Mapping) else read_gates(gates)
    )
    if out is not None:
        free(out)
    means = Means(base, processor, task, batch, max_length, limit, seed)
    if other_seed is not None and not path_of(other_seed).is_dir():
        raise LuthierError(f"no folder {other_seed} of another seed; give a run, an adapter's folder or a model's.")
    subject = subject_of(means, path_of(target), force=force)
    other = None if other_seed is None else subject_of(means, path_of(other_seed), force=force)
    for gate in wanted.values():
        gate.look(subject)
    for each in (subject, other):
        if each is not None:
            _opened(each)
    console, verdicts = Console(stderr=True, quiet=not progress), []
    for name, gate in wanted.items():
        start = time.monotonic()
        console.print(f"measuring {name} …", highlight=False)
        verdict = _measured(name, gate, subject, seed)
        if other is not None and verdict.outcome != UNMEASURED:
            beside = _measured(name, gate, other, seed)
            known = None if beside.outcome == UNMEASURED else beside.worsening
            verdict = replace(verdict, other_seed=known, reason=beside.reason and f"another seed: {beside.reason}")
        verdicts.append(replace(verdict, seconds=round(time.monotonic() - start, 1)))
    found = Checked(str(target), tuple(verdicts))
    if out is not None:
        found.save(out)
    return found


def _opened(subject: Subject) -> None:
    """Loads what was fine-tuned, once: a wrong folder is the input's fault and no gate's."""
    with subject.after():
        pass


def _measured(name: str, gate: Gate, subject: Subject, seed: int) -> Verdict:
    """What a gate finds; where it fails, of whatever (memory, a text that the model cannot read, a gate of the user's
    own), why, since the other gates may have taken hours."""
    try:
        return judged(name, gate, gate.measure(subject), seed)
    except Exception as error:
        if os.environ.get("LUTHIER_DEBUG"):
            traceback.print_exc()
        return unmeasured(name, gate, str(error) if isinstance(error, LuthierError) else reason(error))
