"""One client: an adapter on the base as the server has it, trained on the client's own rows."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import SaveStrategy

from luthier import data
from luthier.core.adapters.attach import detach
from luthier.core.contracts.aggregation import Aggregation
from luthier.data.labels import labels_in_order
from luthier.federating.change import Change, fill, folded, taken
from luthier.models import Loaded
from luthier.training.arguments import arguments
from luthier.training.attachment import attach_all
from luthier.training.context import training_context
from luthier.training.prepare import Prepared
from luthier.training.report import steps_of
from luthier.training.spec import Run
from luthier.training.trainer import Trainer


@dataclass(frozen=True)
class Sent:
    """What a client sends back."""

    change: Change
    """Of this round alone where the server's change is folded into the base, else the whole of it."""
    rows: int
    """What it counts for."""
    loss: float
    """Mean training loss over the round's last tenth."""
    seconds: float = 0.0


def seed_of(run: Run, number: int, client: int, clients: int) -> int:
    """The seed of a client in round `number` (from 1): the run's own for the first client in the first round."""
    return (run.training.seed + (number - 1) * clients + client) % 2**32


def fit(run: Run, method: Aggregation, prepared: Prepared, loaded: Loaded, held: Change, rank: int, seed: int) -> Sent:
    """Trains an adapter of this rank on the rows of `prepared`, from what the server holds.

    `loaded.model` is the base; it is changed while the client trains and is bit-equal afterwards. The steps are those
    of `luthier.train`: its loss, optimiser, schedule, order of rows and noise.
    """
    started, model = time.monotonic(), loaded.model
    own = at_rank(dataclasses.replace(run, training=dataclasses.replace(run.training, seed=seed)), rank)
    with folded(model, held if method.merges else Change(whole=held.whole)):
        set_seed(seed)
        attach_all(own, loaded, prepared, Console(quiet=True))
        try:
            if not method.merges:
                fill(model, run.name, Change({path: method.start(low, rank) for path, low in held.low.items()}))
            losses = trained(own, prepared, loaded)
            change = taken(model, run.name)
        finally:
            detach(model, run.name)
    last = losses[-max(1, len(losses) // 10) :]
    return Sent(change, len(prepared.train), sum(last) / len(last), time.monotonic() - started)


def rows_of(prepared: Prepared, places: Sequence[int]) -> Prepared:
    """Returns the rows of one client, given by their places among those trained on."""
    return dataclasses.replace(prepared, train=[prepared.train[place] for place in places])


def at_rank(run: Run, rank: int) -> Run:
    """Returns the run with its form at a client's rank, alpha / rank unchanged."""
    return run if run.form.with_rank(rank) == run.form else dataclasses.replace(run, form=run.form.with_rank(rank))


def trained(run: Run, prepared: Prepared, loaded: Loaded) -> list[float]:
    """Trains what is attached; returns the loss of every step."""
    model, losses = loaded.model, Losses()
    features = labels_in_order(prepared.train, prepared.examples.labels, model.config)
    steps, _ = steps_of(run, len(features), 1)
    args = arguments(run, steps, (steps, steps), evaluates=False)
    args.save_strategy = SaveStrategy.NO  # a client that is interrupted begins its round again
    collator, shifted = data.collator_for(prepared.task, loaded.processor), prepared.task == "causal-lm"
    with training_context(run, model):
        Trainer(run, model, args, (features, []), collator, shifted, [losses]).train()
    return losses.values


class Losses(TrainerCallback):
    """Keeps the training losses."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One loss per step."""
        if logs and "loss" in logs:
            self.values.append(logs["loss"])
