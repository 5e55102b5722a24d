"""In-context learning as a method: test rows with training rows before their prompts."""

from __future__ import annotations

from typing import Any

from luthier import data
from luthier.comparing.methods import Method
from luthier.comparing.sources import Sourced
from luthier.core.contracts.component import find
from luthier.core.contracts.selection import Pool, Selection
from luthier.core.errors import LuthierError
from luthier.data import Examples
from luthier.training.rows import divide
from luthier.training.spec import Run


def shown(read: Sourced, method: Method, run: Run) -> dict[str, Examples]:
    """Returns the parts of the test as the method sees them: as they are, or each row behind its shots.

    Shots come from the rows that a fine-tuned model of this seed would be trained on, never from those held out.
    """
    if not method.shots:
        return read.tests
    rows = data.load(run.data, split="train", limit=run.limit, seed=run.training.seed, task=run.task, named=run.columns)
    pool = Pool(divide(run, rows)[0], seed=run.training.seed)
    by: Any = find("selections", method.shown_by, Selection)()
    return {part: data.with_shots(by, each, pool, method.shots) for part, each in read.tests.items()}


def check_shots(read: Sourced, method: Method, run: Run, processor: Any, positions: int | None, new: int) -> None:
    """Raises `LuthierError` for data whose rows cannot be shown, and for prompts longer than the model's positions."""
    if read.task != "causal-lm":
        raise LuthierError(f"{method.name} shows rows before prompts, and {read.task} does not have any.")
    for part, each in shown(read, method, run).items():
        longest = max((len(data.prompt_ids(row, processor)), row.row) for row in each.rows)
        if positions is not None and longest[0] + new > positions:
            raise LuthierError(
                f"row {longest[1]} of the test {part} has {longest[0]:,} tokens with {method.shots} shots, and {new} "
                f"are to follow: the model has positions for {positions:,}. Show fewer rows (icl:k=…), or answer in "
                "fewer tokens (max_new_tokens)."
            )
