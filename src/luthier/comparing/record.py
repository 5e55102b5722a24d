"""The record of a finished run: one JSON file, written atomically."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.checks import shown
from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded

RUNS, FILE = "runs", "record.json"


@dataclass(frozen=True)
class Record:
    """One finished run of a study. A figure that is not a number is null in JSON, and NaN here."""

    model: str
    """Name of the base in the study."""
    data: str
    """Name of the data set in the study."""
    method: str
    """Name as asked for: a form, a recipe, `base`, or `peft:lora`."""
    seed: int
    metric: str
    """Name of the main metric, such as `accuracy`, `mcc` or `number`."""
    score: float
    """The main metric on the test part; the mean over its parts where it has several."""
    metrics: dict[str, float]
    """Every metric by name, each the mean over the parts of the test."""
    tests: dict[str, dict[str, float]]
    """By part of the test, every metric; one part bears the name of the data set."""
    rows: int
    """Rows tested."""
    hits: dict[str, list[float]]
    """By part of the test, the main metric of each row where it is a mean of rows, else nothing."""
    losses: list[tuple[int, float]]
    """(step, training loss)."""
    eval_losses: list[tuple[int, float]]
    """(step, loss on the validation part)."""
    trainable: int
    """Trainable parameters, a new head included."""
    total: int
    """Parameters of the model, without the adapter."""
    bytes: int
    """Size of the adapter's tensors on disk."""
    seconds: float
    """Time spent in training, evaluations on the validation part included."""
    step_seconds: float | None
    """Median forward and backward pass of a training batch; None where nothing was trained or timed."""
    step_ratio: float | None
    """That over the same pass of the frozen base with the activations' gradients, timed in turn."""
    peak_bytes: int | None
    """Growth of peak memory over the loaded base in one training step: adapter, activations, gradients, optimiser."""
    forgetting: dict[str, tuple[float, float]] = field(default_factory=dict)
    """(before, after) of `held text loss` and, by their names, of the scores of other data sets."""
    intruders: dict[str, float] | None = None
    """Intruder dimensions: count, null, matrices examined; None where they were not counted."""
    calibration_error: float | None = None
    """Expected calibration error in 15 bins, of classifiers."""
    answers: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    """By part of the test, (truth, prediction) of each row where the main metric is not a mean of rows; else empty."""
    samples: list[dict[str, str]] = field(default_factory=list)
    """prompt, expected and answer of the first test rows."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The resolved run."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """Trials of the search: settings, `lr` first, and `value`, the validation loss (null where it diverged)."""
    budget: str | None = None
    """The budget that bounds the trainable parameters; None where the method is exempt (see `notes`)."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know to compare fairly."""
    command: str = ""
    """The command that repeats the training, or says how it was made."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names the run in its study."""
        return self.model, self.data, self.method, self.seed

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    @guarded("the record of a run is damaged, or was changed by hand")
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Returns the inverse of `to_dict`; unknown and missing keys raise `LuthierError`."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise LuthierError(f"a record has no {key!r}{near(key, known)} It has: {', '.join(known)}.")
        missing = [name for name, f in known.items() if _required(f) and name not in values]
        if missing:
            raise LuthierError(f"a record lacks {', '.join(missing)}.")
        made = cls(**{key: READ[key](value) if key in READ else value for key, value in values.items()})
        for key, hint in typing.get_type_hints(cls).items():
            if not fits(getattr(made, key), hint):
                raise LuthierError(f"its {key} is {shown(values[key])}, expected {known[key].type}.")
        return made


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a value is what an annotation says, all the way down; a short whole number is a float too."""
    if hint is Any or hint is None or hint is type(None):
        return hint is Any or value is None
    if isinstance(hint, types.UnionType):
        return any(fits(value, each) for each in typing.get_args(hint))
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is float or kind is int:
        return (type(value) is int and abs(value) < 2**64) or (kind is float and type(value) is float)
    if not isinstance(value, kind):
        return False
    if kind is dict:
        return all(fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items())
    if kind is tuple:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return kind is not list or all(fits(each, inner[0]) for each in value)


def _required(each: dataclasses.Field) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {key: _number(value) for key, value in values.items()}


def _curve(values: list[list]) -> list[tuple[int, float]]:
    return [(step, _number(loss)) for step, loss in values]


READ = {
    "score": _number,
    "metrics": _numbers,
    "tests": lambda values: {name: _numbers(each) for name, each in values.items()},
    "hits": lambda values: {name: [_number(hit) for hit in each] for name, each in values.items()},
    "answers": lambda values: {name: [(truth, found) for truth, found in each] for name, each in values.items()},
    "losses": _curve,
    "eval_losses": _curve,
    "forgetting": lambda values: {name: (_number(pair[0]), _number(pair[1])) for name, pair in values.items()},
}
"""How fields come back from JSON."""


def _plain(value: Any) -> Any:
    """The value as strict JSON takes it."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(values: Any, path: Path) -> None:
    """JSON that is there whole or not at all: written aside, synced, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(_plain(values), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path) -> Record:
    """Returns the record in a file."""
    with guarded(f"{path} cannot be read as a run's record"):
        values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise LuthierError(f"{path} is not a run's record.")
    try:
        return Record.from_dict(values)
    except LuthierError as error:
        raise LuthierError(f"{path}: {error}") from None


Group = dict[str, list[Record]]
"""The runs of each method."""


def groups(runs: Iterable[Record]) -> dict[tuple[str, str], Group]:
    """Returns by (model, data) the runs of each method, in the order in which they come."""
    made: dict[tuple[str, str], Group] = {}
    for run in runs:
        made.setdefault((run.model, run.data), {}).setdefault(run.method, []).append(run)
    return made


def records(folder: Path | str) -> list[Record]:
    """Returns every finished run of the study in `folder`, by model, data, method and seed."""
    found = [read(path) for path in Path(folder).glob(f"{RUNS}/*/*/*/*/{FILE}")]
    return sorted(found, key=lambda each: each.key)
