"""A run of `luthier train` whose passes are shared with those of others."""

from __future__ import annotations

from typing import Any, ClassVar

from luthier.models import Loaded
from luthier.training.frozen import Frozen
from luthier.training.prepare import Prepared
from luthier.training.report import Plan
from luthier.training.result import Result
from luthier.training.session import Session
from luthier.training.spec import Run
from luthier.training.together.meeting import Gradient, Meeting
from luthier.training.together.request import Asking
from luthier.training.together.turns import ask
from luthier.training.trainer import Trainer


class SharedTrainer(Trainer):
    """A trainer whose losses, and their gradients, come from passes that others share."""

    asking: Asking

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # pyright: ignore
        """Computes the objective's loss; its gradient is there when this returns, and what is returned adds none."""
        loss = super().compute_loss(self.asking, inputs, return_outputs, num_items_in_batch)
        ask(Gradient(loss))
        return loss.detach().requires_grad_()


class Meets(Session):
    """A session in a meeting: its base is a copy, and its adapter is in the shared model as long as it trains."""

    trainer_class: ClassVar[type[Trainer]] = SharedTrainer

    def __init__(self, run: Run, meeting: Meeting) -> None:
        """Called, as `train` is, in a function that the meeting holds."""
        super().__init__(run, progress=False)
        self.meeting = meeting

    def work(self, resume: bool, goes_on: bool) -> Result:
        """Returns the run; behind it, its adapter has left."""
        try:
            return super().work(resume, goes_on)
        finally:
            self.meeting.leave()

    def load(self, prepared: Prepared) -> Loaded:
        """A copy of the base that all share."""
        return self.meeting.copy(self.run, prepared)

    def frozen(self, model: Any, plan: Plan, features: Any, record: dict[str, Any], before: Any) -> Frozen:
        """Nothing: the blocks compute the rows of all runs."""
        return Frozen(None)

    def equip(self, trainer: Trainer, prepared: Prepared, loaded: Loaded) -> None:
        """Gives the trainer the model that its loss asks."""
        assert isinstance(trainer, SharedTrainer)
        trainer.asking = Asking(loaded.model, self.run.name, self.meeting.join(loaded.model, self.run.name))


def train_in(meeting: Meeting, run: Run, resume: bool = True, overwrite: bool = False) -> Result:
    """Trains a run in a meeting, from a function that it holds; as `luthier.train` with a `Run` does alone."""
    return Meets(run, meeting).train(resume, overwrite)
