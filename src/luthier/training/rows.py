"""The rows of a run before they are encoded: read, checked against its objective, and divided."""

from __future__ import annotations

from functools import partial

from luthier import data, models
from luthier.core.contracts.component import find, names
from luthier.core.contracts.objective import Objective
from luthier.core.errors import LuthierError
from luthier.data import Examples
from luthier.data.wanted import JUDGED
from luthier.training.spec import Run
from luthier.training.task_columns import columns_of

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


def reader(run: Run) -> partial[Examples]:
    """Returns `data.load` with what holds for all data of a run: its seed, its columns, what its objective reads."""
    return partial(
        data.load,
        skip_bad_rows=run.skip_bad_rows,
        seed=run.training.seed,
        named=run.columns,
        preferences=judges(run),
        prompts=prompted(run),
    )


def read_rows(run: Run, limit: int | None) -> Examples:
    """Returns the rows of the run's data, or some of them, as it reads them; nothing is encoded.

    Answers are those of the task that the model's class is for, where it has an encoder.
    """
    read = partial(reader(run), run.data, limit=limit, split="train", columns=columns_of(run))
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


def divide(run: Run, examples: Examples) -> tuple[Examples, Examples | None]:
    """Returns (training rows, evaluation rows)."""
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
    held = reader(run)(source, split="test" if same else None, task=examples.task, columns=columns_of(run))
    check_kind(run, held)
    held = data.without(held, examples)
    if not held.rows:
        raise LuthierError(
            f"every row of {source} is also a training row, so its loss would say nothing; give other rows, or none "
            "(a share of the training rows is then held out: eval_fraction)."
        )
    return held
