"""The function `predict`: rows with what a model says to each, in a file that goes on after a kill."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded
from luthier.core.notebook import figures, shown
from luthier.core.paths import path_of
from luthier.core.records import finite
from luthier.data.objects import source_of
from luthier.data.rewriting.journal import Journal

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

    from luthier.evaluating.drawn import Drawn
    from luthier.evaluating.says import Asked

CHUNK = 4
"""Batches whose predictions are put on disk together."""
MAX_NEW_TOKENS = 128
FILES = (".csv", ".jsonl", ".parquet")
"""What can be written."""
COUNTED = 50
"""Different predictions that are counted; more are no classes."""


@dataclass(frozen=True, repr=False)
class Predicted:
    """Rows with what a model says to each."""

    task: str
    count: int
    """Rows that were predicted."""
    columns: tuple[str, ...]
    """The columns that were added."""
    out: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    """All columns of each row; empty where they are in the file `out`."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """The (row, reason) of those left out."""
    predictions: dict[str, int] = field(default_factory=dict)
    """How often each class was predicted; empty for predictions that are no classes."""
    unsure: int = 0
    """Rows whose prediction is empty, as its probability is below the threshold."""

    def figures(self) -> dict[str, Any]:
        """Returns what is told of it, without the rows."""
        return {
            "task": self.task,
            "rows": self.count,
            "out": str(self.out) if self.out else None,
            "columns": list(self.columns),
            "skipped": len(self.skipped),
            "unsure": self.unsure,
            "predictions": self.predictions,
        }

    def __repr__(self) -> str:
        return f"Predicted({', '.join(f'{name} {shown(value)}' for name, value in self.figures().items() if value)})"

    def _repr_html_(self) -> str:
        return figures(self.figures())


def predict(
    model: Any,
    processor: Any,
    rows: str | Path | Sequence[Mapping[str, Any]] | DataFrame | Dataset,
    *,
    out: str | Path | None = None,
    task: str | None = None,
    columns: str | Mapping[str, str] | None = None,
    split: str | None = None,
    threshold: float | None = None,
    top_k: int = 1,
    batch: int = 16,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    truncate: bool = False,
    skip_bad_rows: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    drawn: Drawn | None = None,
    inputs: Mapping[str, Any] | None = None,
    started: Callable[[int], Any] = int,
    done: Callable[[int], Any] = int,
) -> Predicted:
    """Predicts on `rows` (a source, dictionaries, a DataFrame, a Dataset) in any layout that training reads.

    Every column of a row is kept, and beside them stand, by the task of the model (`task`; default: what its class
    tells): `prediction` and `probability` of a class, of several (lists), of the tag of each word (lists), of an answer
    in the context with its `start`, or of a written answer, greedily, with its `tokens`; the `prediction` of a
    regression; the `embedding` of a text. The probability of a written answer is the geometric mean of its tokens'.
    With `drawn` (`drawn_of` an adapter that is a distribution) it is the mean over drawn adapters, and
    `probability_low` and `probability_high` are the ends of its 95% interval.
    With `top_k` the classes or answers behind the first are `prediction_2`, `probability_2` and so on; of several
    classes it is the most that are told. Below `threshold` a prediction is left empty, a tag is O; several classes are
    those of at least the threshold (0.5). Answers that rows have are not read.

    With `out` (.csv, .jsonl, .parquet) the rows go to a file and are not returned. What was predicted is on disk as it
    is made; with `resume` a stopped file goes on, and is the one that would have been made in one go. `inputs` are
    further things that it depends on. `started(n)` hears how many rows there are, `done(n)` of every n that are
    through.

    Raises `LuthierError` before anything is computed for settings that do not act, rows that cannot be read, and
    columns that would be overwritten.
    """
    from luthier.engine.outputs import Reading
    from luthier.evaluating.says import SAYS, Asked, encoded

    path = None if out is None else _file(out)
    task = task or models.task_of_model(model)
    _check(task, threshold, top_k, batch, max_new_tokens, path, resume)
    if drawn is not None and task not in models.WRITTEN:
        raise LuthierError(f"intervals are of written answers, and {task} has none; leave the drawn adapters out.")
    config = model.config
    several = task in ("multi-label", "token-classification") or task.endswith("classification")
    labels = [config.id2label[i] for i in range(config.num_labels)] if several else None
    found = data.load_inputs(
        source_of(rows), task=task, labels=labels, named=columns, split=split, skip_bad_rows=skip_bad_rows
    )
    examples, read = encoded(model, processor, found.examples, max_length, truncate, skip_bad_rows)
    given = _given(found, examples)
    told = [example.meta.get("task") for example in examples.rows]
    by_task = None if None in told or not _goes_by_tasks(model) else [str(each) for each in told]
    bounds = (max_length, models.positions(model))
    most = min((each for each in bounds if each is not None), default=None)
    reading = Reading(model, processor, task, batch, by_task)
    asked = Asked(reading, examples, read, threshold, top_k, max_new_tokens or MAX_NEW_TOKENS, most, drawn)
    started(len(examples))
    say = SAYS[task]
    skipped = sorted([*found.examples.skipped, *_left(found.examples, examples)])
    if path is None:
        said = [each for places in _chunks(0, len(examples), batch) for each in _told(say, asked, places, done)]
        return _predicted(task, said, skipped, rows=_beside(given, said))
    depends = {"model": str(config.name_or_path), "adapter": _digest(model), "rows": examples.fingerprint, "task": task}
    depends |= {"threshold": threshold, "top_k": top_k, "batch": batch, "max_length": max_length, "truncate": truncate}
    depends |= {"max_new_tokens": max_new_tokens, **(inputs or {})}
    depends |= {"drawn": drawn.count} if drawn is not None else {}
    journal = Journal(path, depends)
    journal.open(resume, overwrite)
    done(journal.done)
    for places in _chunks(journal.done, len(examples), batch):
        journal.add(_told(say, asked, places, done), len(places), {})
    said = []

    def make(part: Path, new: Path) -> None:
        with guarded(f"{part} cannot be read"):
            said.extend(json.loads(line) for line in part.read_text("utf-8").splitlines())
        WRITERS[path.suffix](_beside(given, said), new)

    journal.close(make)
    return _predicted(task, said, skipped, out=path)


def _told(say: Callable[[Asked], list[Any]], asked: Asked, places: range, done: Callable[[int], Any]) -> list[Any]:
    found = say(asked.part(places))
    done(len(places))
    return found


def _chunks(first: int, count: int, batch: int) -> list[range]:
    """The rows that are predicted together: always the same ones, wherever a file goes on."""
    size = CHUNK * batch
    return [range(start, min(start + size, count)) for start in range(first, count, size)]


def _file(out: str | Path) -> Path:
    path = path_of(out)
    if path.suffix not in FILES:
        raise LuthierError(f"out is {path}; expected a file that ends in {', '.join(FILES)}.")
    return path


def _check(
    task: str, threshold: float | None, top_k: int, batch: int, tokens: int | None, path: Path | None, resume: bool
) -> None:
    from luthier.evaluating.says import RANKED, SAYS, SURE

    if task not in SAYS:
        raise LuthierError(f"nothing is predicted for {task}{near(task, SAYS)} Tasks are: {', '.join(SAYS)}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise LuthierError(f"threshold is {threshold}; expected a probability between 0 and 1.")
    if threshold is not None and task not in SURE:
        raise LuthierError(f"threshold is of probabilities, and predictions for {task} have none; leave it out.")
    if top_k < 1 or batch < 1:
        raise LuthierError(f"top_k is {top_k} and batch {batch}; expected at least 1.")
    if top_k > 1 and task not in RANKED:
        raise LuthierError(f"top_k is of classes or answers in a context, and {task} has one prediction; leave it out.")
    if tokens is not None and task not in (*models.WRITTEN, models.SPEECH):
        raise LuthierError(f"max_new_tokens is of written answers, and {task} has none; leave it out.")
    if resume and path is None:
        raise LuthierError("resume goes on with a file; name it (out).")


def _given(found: data.Inputs, examples: data.Examples) -> Sequence[Mapping[str, Any]]:
    """The rows of those that could be encoded, as they came; raises where one has a column of ours."""
    rows = {example.row: row for example, row in zip(found.examples.rows, found.rows, strict=True)}
    given = [rows[example.row] for example in examples.rows]
    names = {name for row in given for name in row}
    ours = sorted(name for name in names if name in ADDED or name.startswith(("prediction_", "probability_")))
    if ours:
        raise LuthierError(
            f"{examples.source} has a column {ours[0]!r}, which predictions are written to; rename it, or leave it out."
        )
    return given


ADDED = ("prediction", "probability", "embedding")
"""Columns that are ours in any case; `tokens` and `start` are, too, where rows do not have them."""


def _left(before: data.Examples, after: data.Examples) -> list[tuple[int, str]]:
    there = {example.row for example in after.rows}
    return [(example.row, "it cannot be encoded") for example in before.rows if example.row not in there]


def _goes_by_tasks(model: Any) -> bool:
    from luthier.core.adapters.attach import find_state
    from luthier.core.contracts.router import names_of

    state = find_state(model)
    return state is not None and any(names_of(component.form) for component in state.components)


def _digest(model: Any) -> str | None:
    """SHA-256 of the adapters on the model; None without any."""
    from luthier.core.adapters.attach import find_state
    from luthier.core.adapters.control import tensors

    if find_state(model) is None:
        return None
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors(model).items()):
        digest.update(key.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _beside(given: Sequence[Mapping[str, Any]], said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns of each row, ours behind them: `start` and `tokens` give way to a column of that name."""
    return [
        {**row, **{_free(name, row): value for name, value in new.items()}}
        for row, new in zip(given, said, strict=True)
    ]


def _free(name: str, row: Mapping[str, Any]) -> str:
    return f"prediction_{name}" if name in row and name not in ADDED else name


def _predicted(task: str, said: Sequence[Mapping[str, Any]], skipped: list[tuple[int, str]], **more: Any) -> Predicted:
    names: list[Any] = []
    counts: Counter[str] = Counter()
    for row in said:
        value = row.get("prediction")
        names += [] if isinstance(value, float) else (value if isinstance(value, list) else [value])
    if task.endswith("classification") or task == "multi-label":
        counts.update(name for name in names if name is not None)
    unsure = sum("prediction" in row and row["prediction"] is None for row in said)
    return Predicted(
        task, len(said), tuple(said[0]) if said else (), skipped=skipped, predictions=dict(counts.most_common(COUNTED)),
        unsure=unsure, **more,
    )  # fmt: skip


def _csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """With a header; lists and objects are JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_cell(row.get(name)) for name in names] for row in rows)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value


def _jsonl(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(finite(row), ensure_ascii=False, default=str) + "\n" for row in rows)


def _parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """With the types of the values; a column that Parquet has no type for is JSON."""
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: _column([row.get(name) for row in rows]) for name in names})
    pyarrow.parquet.write_table(table, path)


def _column(values: list[Any]) -> Any:
    import pyarrow

    try:
        found = pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):  # texts beside lists, whole numbers of more than 64 bits
        found = None
    if found is None or _bare(found.type):
        return pyarrow.array([None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in values])
    return found


def _bare(kind: Any) -> bool:
    """Whether a type has an object without keys somewhere, which no Parquet file holds."""
    import pyarrow

    parts = [kind.field(place).type for place in range(kind.num_fields)]
    return (pyarrow.types.is_struct(kind) and not parts) or any(map(_bare, parts))


WRITERS: dict[str, Callable[[Sequence[Mapping[str, Any]], Path], None]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
"""How a file is written, by its suffix."""
