"""The classes of a classifier: their number, names and order in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.errors import LuthierError

SCALAR = ("regression", "reward")
"""Tasks of a model with one number as its output."""
CLASSIFYING = ("classification", "image-classification", "audio-classification")
"""Tasks of a model that gives one class of several."""
LABELLED = (*CLASSIFYING, "multi-label", "token-classification")
"""Tasks whose outputs have names."""
PROBLEMS = {"multi-label": "multi_label_classification"}
"""How transformers calls what a head is for, where it is not one class of several."""


def label_settings(config: Any, task: str, labels: list[str] | None, num_labels: int | None) -> Any:
    """Returns the configuration with the labels in it; changes and returns `config`."""
    if task in SCALAR:
        if labels is not None or num_labels not in (None, 1):
            raise LuthierError(f"{task} has one output and no labels.")
        config.num_labels, config.problem_type = 1, "regression"
        return config
    names = _names(task, labels, num_labels)
    if names and set(names) != set(config.label2id):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    if names or task == "multi-label":
        config.problem_type = PROBLEMS.get(task, "single_label_classification")
    return config


def named(classes: Mapping[int, str]) -> bool:
    """Returns whether somebody named the classes {index: name}; transformers calls them LABEL_0, LABEL_1 and so on."""
    return any(name != f"LABEL_{index}" for index, name in classes.items())


def _names(task: str, labels: list[str] | None, num_labels: int | None) -> list[str]:
    """The labels in order: generic ones for a bare number, none to keep the checkpoint's."""
    if labels is None and num_labels is None:
        return []
    if task not in LABELLED:
        raise LuthierError(f"the task {task} takes no labels; these do: {', '.join(LABELLED)}.")
    names = labels if labels is not None else [f"LABEL_{i}" for i in range(num_labels or 0)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LuthierError(f"labels given twice: {', '.join(twice)}.")
    least = 1 if task == "multi-label" else 2
    if len(names) < least or num_labels not in (None, len(names)):
        raise LuthierError(f"{len(names)} labels and num_labels {num_labels}: expected two or more, and as many.")
    return names
