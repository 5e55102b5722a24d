"""Evaluating a model with its adapter on tasks of the lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from luthier.core.errors import LuthierError, near
from luthier.core.paths import path_of
from luthier.core.records import read_text


def check_harness() -> None:
    """Raises unless the harness is installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise LuthierError("lm-eval tasks need the harness: pip install 'luthier[lm-eval]'.")


def harness(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, limit: int | None = None, batch: int = 16, seed: int = 0
) -> dict[str, dict[str, float]]:
    """`{task: {metric: value}}` of a causal language model, as the harness names them (`acc,none`, `acc_stderr,none`).

    A task is one of the harness (its data come from the hub) or a .yaml file of one. `limit` takes the first rows.
    Raises `LuthierError` for a task that is not there, naming near ones.
    """
    check_harness()
    from lm_eval import simple_evaluate  # pyright: ignore
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    files = [path_of(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    gone = [file for file in files if not file.is_file()]
    if gone:
        raise LuthierError(f"no lm-eval task file {gone[0]}.")
    manager = TaskManager(include_path=sorted({str(file.parent) for file in files}) or None)
    names = [_name(task) for task in tasks]
    for name in names:
        if name not in manager.all_tasks:
            raise LuthierError(f"lm-eval has no task {name!r}{near(name, manager.all_tasks)}")
    found: Any = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch),
        tasks=names,
        task_manager=manager,
        limit=limit,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        log_samples=False,
    )
    return {
        task: {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
        for task, values in found["results"].items()
    }


def _name(task: str) -> str:
    """What a task is called: a file says it in its line `task:`."""
    if not task.endswith((".yaml", ".yml")):
        return task
    lines = read_text(path_of(task)).splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("task:")), "")
    if not name:
        raise LuthierError(f"{task} names no task; add a line such as task: mine.")
    return name
