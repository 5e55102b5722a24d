"""The tasks of rows, for forms that route by task: from the column `task` to an index in a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.form import Form
from luthier.core.contracts.objective import ALSO, TASKS
from luthier.core.contracts.router import Routed, names_of, place
from luthier.core.errors import LuthierError
from luthier.data import Examples, each_with, sizes_of

if TYPE_CHECKING:
    from luthier.training.spec import Run

COLUMN = "task"


def columns_of(run: Run) -> tuple[str, ...]:
    """Returns further columns that are read: the objective's, and the task where the form routes by it."""
    asked = (COLUMN,) if names_of(run.form) or (isinstance(run.form, Routed) and run.form.asks_tasks()) else ()
    return tuple(dict.fromkeys((*run.objective.columns, *asked)))


def tasks_of(parts: Iterable[Examples]) -> tuple[str, ...]:
    """Returns the tasks that rows name, sorted."""
    return tuple(sorted({str(each.meta[COLUMN]) for part in parts for each in part.rows if COLUMN in each.meta}))


def task_indices(form: Form, examples: Examples) -> dict[int, int]:
    """Returns {row: index of its task among the names of the form}; empty for forms and rows without tasks.

    Raises `LuthierError` for tasks that the form does not know, and rows without one where it goes by the task.
    """
    names = form.known() if isinstance(form, Routed) else ()
    asks = isinstance(form, Routed) and form.asks_tasks()
    if not names and not asks:
        return {}
    told = {example.row: str(example.meta[COLUMN]) for example in examples.rows if COLUMN in example.meta}
    bare = [example.row for example in examples.rows if example.row not in told]
    if bare and asks:
        raise LuthierError(
            f"{len(bare)} rows of {examples.source} have no {COLUMN!r} (the first: {bare[0]}), by which {form.name()} "
            "goes. Add the column, or read several sources as mix:name=source,name=source."
        )
    return {row: place(names, name) for row, name in told.items()} if names else {}


def check_types(form: Form, tasks: Sequence[str], source: str) -> None:
    """Raises where experts are kept for a type of rows that no row is of."""
    kept = form.known() if isinstance(form, Routed) and form.asks_tasks() and not form.by_task else ()
    if idle := [name for name in kept if name not in tasks]:
        raise LuthierError(
            f"no row of {source} is of the type {idle[0]!r}, so the experts that {form.name()} keeps for it would have "
            f"nothing to do; there are: {', '.join(tasks)}. Mend types, or the column {COLUMN!r}."
        )


def check_experts(forms: Iterable[Form], features: Sequence[dict[str, Any]], source: str) -> None:
    """Raises where there are more experts than all tokens of the rows could be sent to."""
    for form in (each for each in forms if isinstance(each, Routed)):
        if (sends := form.sends()) is None:
            continue
        (experts, top), tokens = sends, int(sizes_of(features).length.sum())
        if 0 < tokens * top < experts:
            raise LuthierError(
                f"{form.name()} has {experts:,} experts, and sends each of the {tokens:,} tokens of {source} to {top}: "
                "some of them would never be trained. Give fewer experts, or more rows."
            )


def tagged(features: Sequence[dict[str, Any]], places: Mapping[int, int]) -> Sequence[dict[str, Any]]:
    """Returns the features with the indices of their tasks, those behind another row included."""
    if not places or not all(int(row) in places for row in sizes_of(features).row):
        return features

    def more(feature: dict[str, Any]) -> dict[str, Any]:
        behind = {ALSO: tagged(feature[ALSO], places)} if ALSO in feature else {}
        return {TASKS: places[feature["row"]]} | behind

    return each_with(features, more)
