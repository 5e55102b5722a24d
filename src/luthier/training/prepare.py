"""Preparation before weights are loaded: the data read, split and encoded, the selector tried on an empty model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from luthier import data, models
from luthier.core.contracts.component import find, names
from luthier.core.contracts.objective import ALSO, Objective, Rows
from luthier.core.contracts.router import Routed
from luthier.core.contracts.selection import Pool
from luthier.core.errors import LuthierError
from luthier.core.lazy import Lazy
from luthier.core.storage.folder import adapter_folder
from luthier.data import Examples
from luthier.data.score import kinds
from luthier.data.wanted import JUDGED
from luthier.measuring.trial import trial
from luthier.methods.row_model import Reader
from luthier.training.classes import check_classes
from luthier.training.curves import check_evaluation
from luthier.training.from_adapter import check_start
from luthier.training.spec import Run
from luthier.training.task_columns import COLUMN, check_experts, check_types, columns_of, tagged, task_indices, tasks_of
from luthier.training.unread import unread_of
from luthier.training.writing import Asked, asked_of, writes

Feature = dict[str, Any]


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
    settings = run.training
    objective = run.objective
    check_start(run)
    objective.check_form(run.form)
    _check_sources(run)
    examples = read_rows(run, run.limit)
    check_kind(run, examples)
    check_serves(run, examples.task)
    if "pictures" in kinds(examples.rows) and not objective.sees:
        raise LuthierError(f"{run.data} has pictures, and {objective.name()} does not take any; objective=sft does.")
    train, held = divide(run, examples)
    alike = check_classes(train, shared)
    processor, positions = trial(
        run.model, examples.task, run.form, run.where, run.ranks, run.budget, run.update, run.also, run.init
    )
    unread = _unread(run, processor, beside, examples, *([held] if held else []))
    train, selected = _selected(run, train)
    encode = partial(
        data.encode_kept,
        processor=processor,
        task=examples.task,
        max_length=settings.max_length,
        labels=examples.labels,
        truncate=settings.truncate,
        skip_bad_rows=run.skip_bad_rows,
        positions=positions,
        pictures=objective.sees,
    )
    longest = settings.max_length if positions is None else min(settings.max_length, positions)
    parts = [part for part in (train, held) if part is not None]
    tasks = tasks_of(parts) if COLUMN in columns_of(run) else ()
    check_types(run.form, tasks, run.data)
    encoded = [encode(part) for part in parts]
    check_experts((run.form, *(each.form for each in run.also)), encoded[0], run.data)
    dropped = sum(len(part) - data.sizes_of(made).rows for part, made in zip(parts, encoded, strict=True))
    shaped = []
    for part, features in zip(parts, encoded, strict=True):
        places = task_indices(run.form, part)
        whole = _same if objective.streams else list
        rows = Rows(
            part,
            tagged(whole(features), places),
            lambda others, whole=whole: whole(encode(others)),
            processor,
            longest,
            settings.seed,
            tasks,
        )
        shaped.append(tagged(objective.rows(rows), places))
    check_evaluation(run, examples, held)
    if run.training.neftune and examples.task.startswith(("image", "audio", "speech")):
        raise LuthierError(
            f"neftune is noise on the tokens that are read, and {examples.task} reads none; leave it out."
        )
    asked = asked_of(run, held, encoded[1], processor, positions) if held and writes(run, examples.task) else None
    plain, seen = _seen(run, train, encoded[0], encode)
    evaluation = shaped[1] if held else []
    told = _told(run, encoded, alike)
    return Prepared(
        examples.task, train, held, shaped[0], evaluation, processor, plain, seen, unread, dropped, selected, told,
        asked,
    )  # fmt: skip


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


KINDS = {
    "answers": "answers to be given",
    "pairs": "pairs of answers (prompt, chosen, rejected)",
    "prompts": "prompts, with or without a reference answer",
    "texts": "texts that belong near each other (anchor, positive)",
    "judged": "answers with a label, true or false (prompt, completion, label)",
}
"""What rows hold, as `data.kind_of` names it, in words."""


def judges(run: Run) -> bool:
    """Returns whether the objective tells good answers from bad ones."""
    return bool({"pairs", "judged"} & set(run.objective.reads))


def prompted(run: Run) -> bool:
    """Returns whether rows need no answer."""
    return "prompts" in run.objective.reads


def check_kind(run: Run, examples: Examples) -> None:
    """Raises for rows of another kind than the objective reads."""
    kind, wanted = data.kind_of(examples.layout), run.objective.reads
    if kind not in wanted and not (kind == "answers" and prompted(run)):
        raise LuthierError(
            f"{examples.source} has {KINDS[kind]} ({examples.layout}), and {run.objective.name()} reads "
            f"{' or '.join(KINDS[each] for each in wanted)}. Take another objective (luthier list objectives), or say "
            f"which columns are meant (columns).{_of_labels(examples) if 'judged' in wanted else ''}"
        )


def _of_labels(examples: Examples) -> str:
    """What is to be said of labels that judge no answer."""
    label = next((name for name in JUDGED if name in examples.unread), None)
    if label is None:
        return ""
    return f" The column {label!r} judges answers where all that it says is true or false, and some are false."


def check_serves(run: Run, task: str) -> None:
    """Raises for an objective that cannot train a model for the task of the rows, with one that can."""
    if run.objective.serves(task):
        return
    other = next((name for name in names("objectives") if find("objectives", name, Objective)().serves(task)), "none")
    raise LuthierError(
        f"the rows are for {task}, and {run.objective.name()} does not train for it; take another objective "
        f"({other}), or say what the rows are for (task)."
    )


def read_rows(run: Run, limit: int | None) -> Examples:
    """Returns the rows of the run's data, or some of them, as it reads them; nothing is encoded.

    Answers are those of the task that the model's class is for, where it has an encoder.
    """
    read = partial(
        data.load,
        run.data,
        skip_bad_rows=run.skip_bad_rows,
        limit=limit,
        seed=run.training.seed,
        split="train",
        columns=columns_of(run),
        named=run.columns,
        preferences=judges(run),
        prompts=prompted(run),
    )
    wanted = task_of(run)
    found = read(task=wanted)
    if wanted is not None or found.task != "causal-lm":
        return found
    known = models.task_of(run.model, None)
    return found if known is None else read(task=known)


def task_of(run: Run) -> str | None:
    """Returns the task of the model: the objective's own, else the one that was asked for."""
    own = run.objective.task
    if own is not None and run.task not in (None, own):
        raise LuthierError(
            f"{run.objective.name()} trains a model for {own}, and the task is {run.task}; leave it out."
        )
    sloped = [each.name() for each in (run.ranks, run.init) if each is not None and "gradient" in each.needs]
    if own is not None and sloped:
        raise LuthierError(
            f"{sloped[0]} goes by the gradient of the loss of answers, and a model for {own} writes none; choose "
            "another start."
        )
    return own or run.task


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


def divide(run: Run, examples: Examples) -> tuple[Examples, Examples | None]:
    """Returns (training rows, evaluation rows)."""
    settings = run.training
    if run.eval_data is not None:
        return examples, _other(run, examples)
    if not settings.eval_fraction or len(examples) < 2:
        return examples, None
    count = max(1, round(settings.eval_fraction * len(examples)))
    return data.split(examples, n=count, seed=settings.seed)


def _seen(
    run: Run, train: Examples, features: Sequence[Feature], encode: Callable[[Examples], Sequence[Feature]]
) -> tuple[Sequence[Feature], str]:
    """(rows that a calibration pass reads, their fingerprint)."""
    if run.calibration.source is None:
        return _alone(run, features), train.fingerprint
    other = data.load(
        run.calibration.source,
        skip_bad_rows=run.skip_bad_rows,
        seed=run.training.seed,
        task=train.task,
        columns=columns_of(run),
        named=run.columns,
        preferences=judges(run),
        prompts=prompted(run),
    )
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
    target = None
    if run.target is not None:
        target = data.load(
            run.target,
            skip_bad_rows=run.skip_bad_rows,
            seed=run.training.seed,
            task=examples.task,
            named=run.columns,
            preferences=judges(run),
            prompts=prompted(run),
        )
    states, reader = data.states_by(run.model, examples.task), Reader(run.model, examples.task)
    pool = Pool(examples, target, run.training.seed, states, reader)
    found = {"selected_of": len(examples), "target_fingerprint": target.fingerprint if target else None}
    return data.choose(run.select, pool, run.select_rows).examples, found


def _other(run: Run, examples: Examples) -> Examples:
    source = run.eval_data or ""
    same = source == run.data or source.startswith("gym:")
    held = data.load(
        source,
        skip_bad_rows=run.skip_bad_rows,
        seed=run.training.seed,
        split="test" if same else None,
        task=examples.task,
        columns=columns_of(run),
        named=run.columns,
        preferences=judges(run),
        prompts=prompted(run),
    )
    check_kind(run, held)
    held = data.without(held, examples)
    if not held.rows:
        raise LuthierError(
            f"every row of {source} is also a training row, so its loss would say nothing; give other rows, or none "
            "(a share of the training rows is then held out: eval_fraction)."
        )
    return held


def processes() -> int:
    """Processes that train together, as torchrun tells."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Returns whether this process writes files: all others only compute. One alone does, whatever RANK is to it."""
    return processes() == 1 or int(os.environ.get("RANK", "0")) == 0
