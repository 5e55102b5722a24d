"""Training on one task of a sequence: a run like any other, which starts where the last task ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier import data
from luthier.core.errors import LuthierError
from luthier.core.files import committed
from luthier.core.progress import counted
from luthier.core.storage import store
from luthier.data.labels import labels_in_order
from luthier.models import Loaded
from luthier.training.attachment import attach_all
from luthier.training.base import load_base
from luthier.training.penalised import read_state, write_state
from luthier.training.prepare import Prepared
from luthier.training.row_gradients import fisher_diagonal
from luthier.training.sequences.memory import drawn
from luthier.training.sequences.prepare import Plan
from luthier.training.session import Session
from luthier.training.trainer import Trainer

KEPT = "penalty"
"""The folder of a task that holds what the penalty keeps after it."""
FILE = "kept.safetensors"


class TaskSession(Session):
    """The steps of `luthier.train` for one task."""

    def __init__(self, plan: Plan, number: int, progress: bool) -> None:
        """`number` counts the tasks from 0."""
        super().__init__(plan.tasks[number].run, progress)
        self.plan, self.number = plan, number

    def prepare(self) -> Prepared:
        """Returns the rows of the task, mixed with those of others as the sequence says."""
        return self.plan.mixed(self.number)

    def load(self, prepared: Prepared) -> Loaded:
        """The base, with the classes of all tasks."""
        return base(self.plan)

    @property
    def before(self) -> Path | None:
        """The folder of the task that this one goes on from; None for the first, and for adapters of their own."""
        alone = self.number == 0 or self.plan.spec.adapters == "each" or self.plan.spec.by == "joint"
        return None if alone else self.plan.tasks[self.number - 1].run.folder

    def attach(self, loaded: Loaded, prepared: Prepared, known: dict[str, Any] | None) -> dict[str, Any]:
        """Attaches a new adapter for the first task, and the last task's for a later one."""
        if self.before is None:
            return attach_all(self.run, loaded, prepared, self.console, known)
        store.load(loaded.model, self.before / "adapter", self.run.name)
        return {}

    def equip(self, trainer: Trainer, prepared: Prepared, loaded: Loaded) -> None:
        """Gives the trainer what is kept of earlier tasks."""
        if self.before is None:
            return
        if trainer.penalised is not None:
            trainer.penalised.kept = trainer.penalised.placed(read_state(self.before / KEPT / FILE))
        if self.run.update.rehearses:
            held, settings = self.plan.held(self.number), self.run.training
            rows = self.ordered(self.plan.features(held), loaded)
            places = {each: i for i, each in enumerate(held)}
            trainer.rehearsal = lambda step: trainer.data_collator(
                [rows[places[each]] for each in drawn(held, settings.batch * settings.accumulate, settings.seed, step)]
            )

    def ordered(self, features: Any, loaded: Loaded) -> Any:
        """Rows with the label indices of the model."""
        return labels_in_order(features, self.plan.labels, loaded.model.config)

    def trained(self, trainer: Trainer, prepared: Prepared, loaded: Loaded) -> None:
        """Keeps what the penalty knows after the task."""
        if trainer.penalised is None:
            return
        fisher = self.fisher(prepared, loaded) if trainer.penalised.penalty.reads_rows else {}
        kept = trainer.penalised.finish(fisher)
        if not all(bool(t.isfinite().all()) for held in kept.values() for t in held.values()):
            raise LuthierError(f"what {trainer.penalised.penalty.name()} keeps of {self.run.data} is not finite.")
        with committed(self.run.folder / KEPT) as folder:
            write_state(kept, folder / FILE)

    def fisher(self, prepared: Prepared, loaded: Loaded) -> Any:
        """The Fisher information of single rows of the task, with progress."""
        own = self.ordered(self.plan.tasks[self.number].prepared.train, loaded)
        collate, size = data.collator_for(prepared.task, loaded.processor), self.run.training.batch
        order = sorted(range(len(own)), key=lambda i: data.length_of(own[i]))
        batches = [collate([own[i] for i in order[at : at + size]]) for at in range(0, len(order), size)]
        if not self.console.is_terminal:
            self.console.print(f"Fisher information of {len(own):,} rows", highlight=False)
            return fisher_diagonal(loaded.model, batches)
        with counted(self.console, "Fisher information of single rows") as bar:
            task = bar.add_task("", total=len(own))
            return fisher_diagonal(loaded.model, batches, lambda rows: bar.advance(task, rows))


def base(plan: Plan) -> Loaded:
    """Loads the base of a sequence, with the classes of all tasks."""
    return load_base(plan.run, plan.tasks[0].prepared.task, plan.labels)
