"""The specification of a sequence of tasks, beside what is trained on each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.contracts.component import check_fields, find, names
from luthier.core.contracts.penalty import Penalty
from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError, near
from luthier.training.spec import Run

ROWS = {
    "naive": "the rows of the task alone",
    "replay": "the rows of the task and rows of earlier ones",
    "cumulative": "the rows of the task and all of earlier ones",
    "joint": "the rows of all tasks in one run",
}
"""Ways that differ by the rows that a task is trained on."""
MEMORY = 200
"""Rows of earlier tasks that are kept, where no number is given."""


def ways() -> list[str]:
    """Lists what `by` may be: ways to mix rows, penalties that remember, and updates that go by earlier rows."""
    penalties = [name for name in names("penalties") if find("penalties", name, Penalty).remembers]
    updates = [name for name in names("updates") if find("updates", name, Update).rehearses]
    return [*ROWS, *penalties, *updates]


@dataclass(frozen=True)
class TaskSequence:
    """Tasks in their order, and how the model is kept from forgetting the earlier ones."""

    tasks: tuple[str, ...]
    """The rows of each task: files, folders, hub ids or gym:<task>, in the order of training."""
    by: str = "naive"
    """The way: naive, replay, cumulative, joint, a penalty (ewc, si, rwalk) or an update (agem)."""
    tests: tuple[str, ...] = ()
    """Rows to test on, one source for each task. Default: a share of each task's rows (eval_fraction)."""
    adapters: Literal["one", "each"] = "one"
    """One adapter that goes on over all tasks, or each task its own, which starts from the base."""
    memory: int | None = None
    """Rows of earlier tasks that replay and agem keep, drawn by reservoir sampling. Default: 200."""
    replay_share: float | None = None
    """Share of kept rows among those that replay trains on. Default: 0.5; kept rows are repeated for it."""
    score: Literal["answers", "loss"] | None = None
    """What the matrix holds: scores of answers, or minus the loss of a row. Default: answers, where rows have some."""

    def __post_init__(self) -> None:
        check_fields(self)
        known = ways()
        if self.by not in known:
            raise LuthierError(f"no way {self.by!r} to go on{near(self.by, known)} There are: {', '.join(known)}.")
        if len(self.tasks) < 2:
            raise LuthierError(
                f"{len(self.tasks)} task is not a sequence; name at least two (--tasks A B), or use luthier train."
            )
        if self.tests and len(self.tests) != len(self.tasks):
            raise LuthierError(f"{len(self.tests)} tests for {len(self.tasks)} tasks; give one for each, in order.")
        if self.adapters == "each" and self.by != "naive":
            raise LuthierError(
                f"an adapter for each task shares nothing with the others, so {self.by} would keep nothing; leave "
                "adapters or by out."
            )
        self._check_memory()

    def _check_memory(self) -> None:
        if self.memory is not None and not self.keeps:
            raise LuthierError(f"{self.by} keeps no rows of earlier tasks, and memory is {self.memory}; leave it out.")
        if self.replay_share is not None and self.by != "replay":
            raise LuthierError(
                f"{self.by} mixes no kept rows in, and replay_share is {self.replay_share}; leave it out."
            )
        if self.memory is not None and self.memory < 1:
            raise LuthierError(f"memory is {self.memory}; expected at least 1 row.")
        if self.replay_share is not None and not 0 < self.replay_share < 1:
            raise LuthierError(f"replay_share is {self.replay_share}; expected a number between 0 and 1.")

    @property
    def keeps(self) -> bool:
        """Whether rows of earlier tasks are kept in a buffer."""
        return self.by == "replay" or self.by in names("updates")

    @property
    def rows_kept(self) -> int:
        """How many rows the buffer holds."""
        return self.memory or MEMORY

    def applied(self, run: Run, settings: dict[str, Any]) -> Run:
        """Returns the run with the penalty or the update that `by` names; `settings` are the penalty's own."""
        if self.by in names("penalties"):
            return dataclasses.replace(run, penalty=find("penalties", self.by, Penalty).from_dict(settings))
        if self.by in names("updates"):
            if run.update != find("updates", "adamw")():
                raise LuthierError(f"by={self.by} is an update, and update is {run.update.name()}; leave one out.")
            return dataclasses.replace(run, update=find("updates", self.by, Update)())
        return run

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON holds them."""
        return {**dataclasses.asdict(self), "tasks": list(self.tasks), "tests": list(self.tests)}


def check_run(run: Run, processes: int) -> None:
    """Raises for a run that no sequence of tasks can go on with."""
    if processes > 1 or run.training.shard:
        raise LuthierError("a sequence of tasks is trained by one process; start it without torchrun and shard.")
    if run.training.eval_every is not None:
        raise LuthierError("a sequence is tested after each task and not in between; leave eval_every out.")
    if run.objective.eval_batches(0) != 0:
        raise LuthierError(
            f"{run.objective.name()} goes by the evaluation loss while it trains, and the rows that a sequence holds "
            "out are for its tests; choose another objective."
        )
    if run.update.sparse:
        raise LuthierError(
            f"{run.update.name()} saves the adapter as few entries of the base, which the next task could not go on "
            "training as they were; choose another update."
        )
