"""`gym:<task>`: procedural problems with exact scorers, from reasoning-gym."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded

if TYPE_CHECKING:
    from luthier.data.table import Table

OFFSETS = {"train": 0, "test": 1_000_000, "validation": 2_000_000}
"""Added to the seed of each split. Problem i of a task is drawn from seed + i, so splits of at
most a million problems share no seed. Two sets of the same split share problems when their seeds
differ by less than their size."""
SIZE = 500
"""Problems drawn when neither `size` nor a limit is given."""


def read_gym(source: str, split: str, limit: int | None, seed: int) -> Table:
    """Returns the rows with `question`, `answer` and `entry` (the problem as reasoning-gym's scorer takes it).

    `source` is `gym:<task>` or `gym:<task>?setting=value&…`; `size` and `seed` are settings as
    well, and a limit takes the place of `size`. Raises on an unknown task or setting, a value out
    of range, or an unknown split.
    """
    from luthier.data.table import Table

    task, settings = _parse(source)
    if split not in OFFSETS:
        raise LuthierError(f"{source} has no split {split!r}{near(split, OFFSETS)} Splits: {', '.join(OFFSETS)}.")
    size = _whole(source, "size", settings.pop("size", SIZE) if limit is None else limit)
    if not 0 < size <= OFFSETS["test"]:
        raise LuthierError(f"{source}: size {size}; expected 1 to {OFFSETS['test']}.")
    start = _whole(source, "seed", settings.pop("seed", seed)) + OFFSETS[split]
    problems = _create(source, task, {**settings, "size": size, "seed": start})
    rows = []
    for number in range(size):
        with guarded(f"{source}: problem {number + 1} cannot be made"):
            entry = problems[number]
        if not isinstance(entry["answer"], str):
            raise LuthierError(f"{source}: {task} scores answers but gives none to learn from; choose another task.")
        rows.append((number + 1, {"question": entry["question"], "answer": entry["answer"], "entry": entry}))
    return Table(rows)


def gym_score(task: str) -> Any:
    """Returns `score_answer(prediction, entry) -> float` of a task, which runs in a process of its own.

    Some of these scorers evaluate what an answer says, so none is called in this process.
    """
    _known(task)
    from luthier.data.sandbox.scorers import score_apart

    return partial(score_apart, "reasoning_gym.factory", "get_score_answer_fn", task)


def _parse(source: str) -> tuple[str, dict[str, Any]]:
    task, _, query = source.removeprefix("gym:").partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise LuthierError(f"{source}: {error}; expected gym:{task}?setting=value&setting=value.") from None
    return task, {name: _value(text) for name, text in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _whole(source: str, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise LuthierError(f"{source}: {name} is {value!r}; expected a whole number.")
    return value


def _known(task: str) -> type:
    """The class of a task's settings."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise LuthierError("gym: sources need reasoning-gym: pip install 'luthier[gym]'.") from None
    if task not in DATASETS:
        raise LuthierError(
            f"no gym task {task!r}{near(task, DATASETS)} reasoning-gym {reasoning_gym.__version__} has "
            f"{len(DATASETS)}: {', '.join(sorted(DATASETS))}."
        )
    return DATASETS[task][1]


def _create(source: str, task: str, settings: dict[str, Any]) -> Any:
    known = {f.name: f for f in dataclasses.fields(_known(task))}
    for name in settings:
        if name not in known:
            raise LuthierError(
                f"{source}: {task} has no setting {name!r}{near(name, known)} It has: {', '.join(known)}."
            )
    import reasoning_gym

    with guarded(f"{source}: {task} refuses these settings"):
        return reasoning_gym.create_dataset(task, **settings)
