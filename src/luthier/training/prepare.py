"""Before the weights: the data read, divided and encoded, the selector tried on an empty model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.data import Examples
from luthier.training.spec import Run

Feature = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """The rows of a run, encoded."""

    task: str
    """What the model is fitted for."""
    examples: Examples
    """The rows trained on."""
    held: Examples | None
    """The rows of the evaluation loss."""
    train: list[Feature]
    evaluation: list[Feature]
    processor: Any


def prepare(run: Run) -> Prepared:
    """The encoded rows of `run`; whatever is wrong with the data, the model's name or the selector raises here."""
    settings = run.training
    examples = data.load(
        run.data,
        skip_bad_rows=run.skip_bad_rows,
        limit=run.limit,
        seed=settings.seed,
        task=run.task,
    )
    train, held = _divide(run, examples)
    processor = try_selector(run, examples.task)
    encoded = [
        data.encode_all(
            part,
            processor,
            task=examples.task,
            max_length=settings.max_length,
            labels=examples.labels,
            truncate=settings.truncate,
            skip_bad_rows=run.skip_bad_rows,
        )
        for part in (train, held)
        if part is not None
    ]
    return Prepared(examples.task, train, held, encoded[0], encoded[1] if held else [], processor)


def _divide(run: Run, examples: Examples) -> tuple[Examples, Examples | None]:
    """(training rows, evaluation rows)."""
    settings = run.training
    if run.eval_data is not None:
        return examples, _other(run, examples)
    if not settings.eval_fraction or len(examples) < 2:
        return examples, None
    count = max(1, round(settings.eval_fraction * len(examples)))
    return data.split(examples, n=count, seed=settings.seed)


def _other(run: Run, examples: Examples) -> Examples:
    source = run.eval_data or ""
    same = source == run.data or source.startswith("gym:")
    held = data.load(
        source,
        skip_bad_rows=run.skip_bad_rows,
        seed=run.training.seed,
        split="test" if same else "train",
        task=examples.task,
    )
    held = data.without(held, examples)
    if not held.rows:
        raise LuthierError(
            f"every row of {source} is also a training row, so its loss would say nothing; give other rows, or none "
            "(a share of the training rows is then held out: eval_fraction)."
        )
    return held


def try_selector(run: Run, loader: str) -> Any:
    """The processor of the run's model, after selector and budget were tried on the model without weights."""
    import torch
    import transformers

    from luthier.measuring.allocation import ground

    path = models.resolve(run.model)
    task = models.TASKS[loader]
    with _told(run.model, path, loader):
        config = transformers.AutoConfig.from_pretrained(path)
        processor = getattr(transformers, task.processor).from_pretrained(path)
        with torch.device("meta"):
            empty = getattr(transformers, task.model).from_config(config)
    ground(empty, run.form, run.where, run.ranks, run.budget)
    return processor


@contextmanager
def _told(name: str, path: Path | str, task: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise LuthierError(
            f"could not load {name!r} for {task}: {reason} Check that {path} is whole and that its model serves "
            "this task."
        ) from error


def labels_in_order(features: list[Feature], labels: list[str] | None, config: Any) -> list[Feature]:
    """The features with the label indices of the model, which may keep an order of its own."""
    if labels is None:
        return features
    order = [config.label2id[name] for name in labels]
    return [feature | {"labels": order[feature["labels"]]} for feature in features]


def processes() -> int:
    """Processes that train together, as torchrun tells."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files: all others only compute."""
    return int(os.environ.get("RANK", "0")) == 0


def length(feature: Feature) -> int:
    """Tokens of a row (0 for pictures and sounds)."""
    answer = feature["labels"] if isinstance(feature["labels"], list) else []
    separate = len(answer) if len(answer) != len(feature.get("input_ids", ())) else 0
    return len(feature.get("input_ids", ())) + separate
