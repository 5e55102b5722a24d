"""Preparation before weights are loaded: the data read, split and encoded, the selector tried on an empty model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from luthier import data, models
from luthier.core.contracts.objective import ALSO, Rows
from luthier.core.contracts.router import Routed
from luthier.core.contracts.selection import Pool
from luthier.core.errors import LuthierError
from luthier.core.lazy import Lazy
from luthier.core.storage.folder import adapter_folder
from luthier.data import Examples
from luthier.data.score import kinds
from luthier.measuring.trial import trial
from luthier.methods.row_model import Reader
from luthier.training.classes import check_classes
from luthier.training.curves import check_evaluation
from luthier.training.from_adapter import check_start
from luthier.training.loss_scale import check_scaled
from luthier.training.rows import check_kind, check_serves, divide, judges, read_rows, reader
from luthier.training.spec import Run
from luthier.training.task_columns import COLUMN, check_experts, check_types, columns_of, tagged, task_indices, tasks_of
from luthier.training.unread import unread_of
from luthier.training.writing import Asked, asked_of, writes

Feature = dict[str, Any]
Encode = Callable[[Examples], Sequence[Feature]]


@dataclass(frozen=True)
class Prepared:
    """The rows of a run, encoded."""

    task: str
    """The task of the model."""
    examples: Examples
    """The rows trained on."""
    held: Examples | None
    """The rows of the evaluation loss."""
    train: Sequence[Feature]
    """As the objective shapes them."""
    evaluation: Sequence[Feature]
    processor: Any
    plain: Sequence[Feature]
    """What a calibration pass reads: the rows trained on, or other data, as they were encoded."""
    seen: str
    """The fingerprint of those rows."""
    unread: tuple[str, ...] = ()
    """What the data hold and nothing reads, the template included."""
    dropped: int = 0
    """Rows that were read and could not be encoded (`skip_bad_rows`)."""
    selected: dict[str, Any] = field(default_factory=dict)
    """How many rows the selection chose from, and the fingerprint of its target; empty without one."""
    told: dict[str, str] = field(default_factory=dict)
    """What the user should hear of the rows, with how many it is true of."""
    asked: Asked | None = None
    """What the evaluations write answers to, where `best` goes by such."""


def prepare(run: Run, beside: Sequence[str | None] = (), shared: bool = False) -> Prepared:
    """Returns the encoded rows of `run`; whatever is wrong with the data, the model's name or the selector raises here.

    Columns `beside` are read by the caller. `shared` says that other rows bring more classes to the same model.
    """
    with models.trusting(run.trust_remote_code):
        return _prepare(run, beside, shared)


def _prepare(run: Run, beside: Sequence[str | None], shared: bool) -> Prepared:
    examples = _read(run)
    train, held = divide(run, examples)
    alike = check_classes(train, shared)
    processor, positions = trial(
        run.model, examples.task, run.form, run.where, run.ranks, run.budget, run.update, run.also, run.init
    )
    unread = _unread(run, processor, beside, examples, *([held] if held else []))
    train, selected = _selected(run, train)
    parts = [part for part in (train, held) if part is not None]
    tasks = tasks_of(parts) if COLUMN in columns_of(run) else ()
    check_types(run.form, tasks, run.data)
    check_evaluation(run, examples, held)
    encode = _encoder(run, examples, processor, positions)
    encoded = [encode(part) for part in parts]
    check_experts((run.form, *(each.form for each in run.also)), encoded[0], run.data)
    dropped = sum(len(part) - data.sizes_of(made).rows for part, made in zip(parts, encoded, strict=True))
    longest = run.training.max_length if positions is None else min(run.training.max_length, positions)
    shaped = [
        _shaped(run, Rows(part, features, encode, processor, longest, run.training.seed, tasks, part is held))
        for part, features in zip(parts, encoded, strict=True)
    ]
    asked = asked_of(run, held, encoded[1], processor, positions) if held and writes(run, examples.task) else None
    plain, seen = _seen(run, train, encoded[0], encode)
    evaluation = shaped[1] if held else []
    told = _told(run, encoded, alike)
    return Prepared(
        examples.task, train, held, shaped[0], evaluation, processor, plain, seen, unread, dropped, selected, told,
        asked,
    )  # fmt: skip


def _read(run: Run) -> Examples:
    """The rows of the run's data; raises for those that its form, objective or options cannot be trained on."""
    check_start(run)
    check_scaled(run)
    run.objective.check_form(run.form)
    _check_sources(run)
    examples = read_rows(run, run.limit)
    check_kind(run, examples)
    check_serves(run, examples.task)
    if "pictures" in kinds(examples.rows) and not run.objective.sees:
        raise LuthierError(
            f"{run.data} has pictures, and {run.objective.name()} does not take any; objective=sft does."
        )
    if run.training.neftune and examples.task.startswith(("image", "audio", "speech")):
        raise LuthierError(
            f"neftune is noise on the tokens that are read, and {examples.task} reads none; leave it out."
        )
    return examples


def _encoder(run: Run, examples: Examples, processor: Any, positions: int | None) -> Encode:
    return partial(
        data.encode_kept,
        processor=processor,
        task=examples.task,
        max_length=run.training.max_length,
        labels=examples.labels,
        truncate=run.training.truncate,
        skip_bad_rows=run.skip_bad_rows,
        positions=positions,
        pictures=run.objective.sees,
    )


def _shaped(run: Run, rows: Rows) -> Sequence[Feature]:
    """Encoded rows as the objective takes them, each with the index of its task."""
    places = task_indices(run.form, rows.examples)
    whole = _same if run.objective.streams else list
    given = replace(
        rows, features=tagged(whole(rows.features), places), encode=lambda others: whole(rows.encode(others))
    )
    return tagged(run.objective.rows(given), places)


def _check_sources(run: Run) -> None:
    """Raises for experts and references that are not adapters, and for a router over experts that do nothing."""
    reference = run.objective.reference_adapter()
    for source in (*run.form.sources(), *([reference] if reference is not None else [])):
        adapter_folder(source)
    if isinstance(run.form, Routed) and run.form.train == "router" and not run.form.sources():
        raise LuthierError(
            f"train=router leaves the experts of {run.form.name()} as they start, which is without effect: there is "
            "nothing to choose among. Name finished adapters to start from, or leave train out."
        )


def _same(features: Sequence[Feature]) -> Sequence[Feature]:
    return features


def _told(run: Run, parts: Sequence[Sequence[Feature]], alike: dict[str, str]) -> dict[str, str]:
    """What the user should hear of the rows, besides labels that are all `alike`; raises if the run is strict."""
    found = data.told(*parts) | alike
    if found and run.strict:
        notes = "\n".join(f"  {count}: {note}" for note, count in found.items())
        raise LuthierError(f"{run.data} is not learned as it stands:\n{notes}\nMend the rows, or leave strict out.")
    return found


def _unread(run: Run, processor: Any, beside: Sequence[str | None], *parts: Examples) -> tuple[str, ...]:
    """What no layout reads, except keys of turns that the chat template names; raises if the run is strict."""
    found = tuple(name for name in unread_of(processor, *parts) if name not in beside)
    if found and run.strict:
        raise LuthierError(
            f"{run.data} holds what nothing reads: {', '.join(found)}. Remove it, say what it is (columns), or leave "
            "strict out."
        )
    return found


def _seen(run: Run, train: Examples, features: Sequence[Feature], encode: Encode) -> tuple[Sequence[Feature], str]:
    """(rows that a calibration pass reads, their fingerprint)."""
    if run.calibration.source is None:
        return _alone(run, features), train.fingerprint
    other = reader(run)(run.calibration.source, task=train.task, columns=columns_of(run))
    return _alone(run, encode(other)), other.fingerprint


def _alone(run: Run, features: Sequence[Feature]) -> Sequence[Feature]:
    """The rows without those behind them: of a pair, the chosen answer."""
    if not judges(run):
        return features
    return Lazy(range(len(features)), lambda place: alone(features[place]))


def alone(feature: Feature) -> Feature:
    """Returns a row without those behind it: of a pair, the chosen answer."""
    return {key: value for key, value in feature.items() if key != ALSO}


def _selected(run: Run, examples: Examples) -> tuple[Examples, dict[str, Any]]:
    """(the rows that the selection takes, what it chose from)."""
    if run.select is None or run.select_rows is None:
        return examples, {}
    target = None if run.target is None else reader(run)(run.target, task=examples.task)
    states, model = data.states_by(run.model, examples.task), Reader(run.model, examples.task)
    pool = Pool(examples, target, run.training.seed, states, model)
    found = {"selected_of": len(examples), "target_fingerprint": target.fingerprint if target else None}
    return data.choose(run.select, pool, run.select_rows).examples, found
