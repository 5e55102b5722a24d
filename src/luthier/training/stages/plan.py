"""The file of a plan: stages, each a run file, under settings that they share.

model = "smollm2-135m"          # these, and [training], are those of every stage unless it says otherwise
out = "tower"                   # a folder, in which each stage is a run folder
method = "lora"                 # the form of the adapter, which goes from stage to stage
[[stage]]
name = "pretrain"
data = "texts.jsonl"
[stage.training]
steps = 300
[[stage]]
name = "preferences"
data = "pairs.jsonl"
objective = {name = "dpo", beta = 0.1}
[measure]                       # optional: every checkpoint of every stage is scored on both
task = "test.jsonl"             # what the stages are for
general = "general.jsonl"       # what must not be lost: rows to answer, or texts, whose loss is taken
checkpoints = 4                 # of each stage
limit = 200

Variables, paths beside the file, recipes and all other keys are as in a run file (`luthier.training.runfile`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.contracts.component import check_fields, known_fields
from luthier.core.errors import LuthierError, near
from luthier.core.files import located
from luthier.core.paths import path_of
from luthier.training.from_adapter import EARLIER, FIELD, resolved
from luthier.training.objective import completed
from luthier.training.runfile import FORM, RunFile, described, filled, lasting, overlaid, parsed
from luthier.training.spec import Run

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")
OWN = ("stage", "measure", "out")
"""Keys of a plan that are no run's."""
FIRST = (*FORM, *EARLIER, FIELD)
"""What the first stage alone may say: later ones go on with its adapter."""


@dataclass(frozen=True)
class Measured:
    """What the checkpoints of a plan are scored on."""

    task: str
    """Data of what the stages are for: rows to answer, to classify, or pairs."""
    general: str
    """Data of what must not be lost: as `task`, or texts, whose mean loss is taken."""
    checkpoints: int = 4
    """How many checkpoints each stage keeps to be scored, unless it says save_every itself."""
    limit: int | None = None
    """Score on this many rows of each, drawn by seed 0. Default: all."""
    scorer: str | None = None
    """Scorer of the answers to `task`. Default: chosen by the data."""
    batch: int = 16
    """Rows per batch."""
    max_new_tokens: int = 128
    """The most tokens of an answer."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("checkpoints", "limit", "batch", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LuthierError(f"[measure] {name} is {value}; expected at least 1.")


@dataclass(frozen=True)
class Stage:
    """One run of a plan."""

    name: str
    folder: Path
    """Its run folder."""
    file: RunFile
    """What it says, under what all stages share."""
    start: Path | None
    """The folder of the stage before, whose adapter goes on; None for the first."""
    named: frozenset[str]
    """Settings of training that the plan states for it."""

    def run(self, form: Mapping[str, Any] | None = None) -> Run:
        """Returns the run. `form` stands for the form of an adapter that is not there yet; such a run has no start."""
        stated = self.file.stated()
        if self.start is None:
            return completed({**stated, "out": str(self.folder)})
        kept = {name: value for name, value in stated.items() if name not in FIRST}
        if form is not None:
            return completed({**kept, **form, "out": str(self.folder)})
        return completed(resolved({**kept, FIELD: str(self.start), "out": str(self.folder)}, chosen=False))


@dataclass(frozen=True)
class StagePlan:
    """The stages of a plan, in their order."""

    path: Path
    folder: Path
    """Where the stages' run folders are."""
    stages: tuple[Stage, ...]
    measured: Measured | None = None
    """What every checkpoint is scored on. Default: nothing."""


def read_plan(name: str | Path, out: str | Path | None = None) -> StagePlan:
    """Returns the plan in a .toml or .yaml file; `out` takes the place of the file's.

    Raises `LuthierError` for unknown keys, stages of one name, and what only the first stage may say.
    """
    path = path_of(name)
    if not path.is_file():
        raise LuthierError(f"the plan {path} does not exist.")
    values = filled(parsed(path), path)
    stages = values.get("stage") if isinstance(values, dict) else None
    if not isinstance(stages, list) or not stages or not all(isinstance(each, dict) for each in stages):
        raise LuthierError(f'{path} has no stages; add a table [[stage]] with name = "sft" and data = "…" for each.')
    folder = path_of(str(out or values.get("out") or path.stem))
    shared = {key: value for key, value in values.items() if key not in OWN}
    made = _stages(path, folder, shared, stages)
    table = values.get("measure")
    return StagePlan(path, folder, made, None if table is None else _measured(path, table))


def _stages(path: Path, folder: Path, shared: dict[str, Any], tables: Sequence[dict[str, Any]]) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for number, table in enumerate(tables, 1):
        name = _named(path, number, table, [each.name for each in found])
        own = {key: value for key, value in table.items() if key != "name"}
        for key in ("out", "model"):
            if key in own:
                raise LuthierError(f"{path}: the stage {name} says {key}; {key} is the plan's, above the stages.")
        if number > 1 and (strange := [key for key in FIRST if key in own]):
            raise LuthierError(
                f"{path}: the stage {name} says {', '.join(strange)}; it goes on with the adapter of {found[-1].name}, "
                "with its form, ranks and scales. Say that in the first stage."
            )
        under = shared if number == 1 else {key: value for key, value in shared.items() if key not in FIRST}
        file = described(path, _over(under, own))
        named = frozenset({*shared.get("training", {}), *own.get("training", {}), *file.recipe.training})
        start = found[-1].folder if found else None
        found.append(Stage(name, folder / f"{number:02}-{name}", file, start, named))
    return tuple(found)


def _named(path: Path, number: int, table: Mapping[str, Any], taken: Sequence[str]) -> str:
    name = table.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise LuthierError(f'{path}: stage {number} has the name {name!r}; expected letters and digits, name = "sft".')
    if name in taken:
        raise LuthierError(f"{path}: two stages are called {name}; give one of them another name.")
    return name


def _over(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings over those that all share."""
    found = dict(shared)
    for key, value in own.items():
        under = found.get(key)
        both = isinstance(under, dict) and isinstance(value, dict)
        merge = lasting if key == "training" else overlaid
        found[key] = merge(under, value) if both else value  # type: ignore[arg-type]
    return found


def _measured(path: Path, table: Any) -> Measured:
    if not isinstance(table, dict):
        raise LuthierError(f"{path}: measure is {table!r}; expected a table with task and general.")
    lacking = [key for key in ("task", "general") if key not in table]
    if lacking:
        known = [each.name for each in dataclasses.fields(Measured)]
        told = next((near(key, known) for key in table if key not in known), ".")
        raise LuthierError(f"{path}: [measure] names no {' and no '.join(lacking)}{told}")
    given = known_fields(Measured, table)
    for key in ("task", "general"):
        given[key] = located(given[key], path.parent) if isinstance(given[key], str) else given[key]
    return Measured(**given)
