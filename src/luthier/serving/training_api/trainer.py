"""The models in training: in memory while they are used, on disk always, and every request applied exactly once.

What a model is follows from its last snapshot and the requests after it, which are kept until the next snapshot. A
server that was killed loads the snapshot and runs what had been run behind it once more.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np

from luthier.core.errors import LuthierError
from luthier.core.files import discard
from luthier.engine.engine import Engine
from luthier.serving.http.bodies import parsed
from luthier.serving.training_api import asks, names
from luthier.serving.training_api.asks import Ask, Datum, gathered
from luthier.serving.training_api.bodies import AdamBody, LoadBody, StepBody
from luthier.serving.training_api.names import Wanted
from luthier.serving.training_api.store import DONE, Row, Store, waits
from luthier.serving.training_api.tensors import output
from luthier.training.together import Outcome, Pool

log = logging.getLogger(__name__)
T = TypeVar("T")
PASS_TOKENS = 2048
"""Tokens of one pass; a request with more goes through in several, whose gradients add up."""
SNAPSHOT_SECONDS = 20.0
"""How much work a restart has to do again, at most about."""
EFFECTS = ("forward_backward", "optim_step", "load_weights")
"""Kinds of requests that change a model, after the one that makes it."""


class Trainer:
    """Applies requests to models; one thread uses it, and the model itself is touched on the engine's."""

    def __init__(self, engine: Engine, store: Store, folder: Path, base: str, most: int, together: bool) -> None:
        """`most` models are in memory at a time, and so in a pass; `together`: several models share passes."""
        self.engine, self.store, self.folder, self.together = engine, store, folder, together
        self.pool = Pool(engine.model, base)
        config = engine.model.config.get_text_config()
        self.words: int = config.vocab_size
        self.snapshot_seconds = SNAPSHOT_SECONDS
        self.most = most
        self._held: OrderedDict[str, float] = OrderedDict()
        """Models in memory, the last used last, and when each was saved last."""

    # --- models in memory ---

    def hold(self, model: Row) -> str:
        """Returns the pool's name of a model, which is in memory then as its requests so far have left it."""
        name = pool_name(model["id"])
        if model["id"] in self._held:
            self._held.move_to_end(model["id"])
            return name
        self._make_room()
        try:
            self._restore(model, name)
        except BaseException:
            self.drop(model["id"])
            raise
        self._held[model["id"]] = time.monotonic()
        return name

    def _restore(self, model: Row, name: str) -> None:
        first = 0
        if model["snapshot"] is not None:
            place = self.folder / model["snapshot"]
            self._on_engine(lambda: self.pool.load(name, place, optimizer=True))
            first = model["durable"] + 1
        query = "SELECT * FROM requests WHERE owner = ? AND seq >= ? AND seq < ? AND state = ? ORDER BY seq"
        for request in self.store.rows(query, model["id"], first, model["next"], DONE):
            self._again(model, name, request)

    def _again(self, model: Row, name: str, request: Row) -> None:
        """Applies what was applied before the server went."""
        if request["seq"] == 0:
            self.begin(model, name, request)
        elif request["kind"] == "forward_backward":
            if not (ask := self.ask(request)).forward_only:
                self._run([(name, ask)])
        elif request["kind"] == "optim_step":
            self.step(name, request)
        elif request["kind"] == "load_weights":
            self.load(model, name, request)

    def _make_room(self) -> None:
        """Puts the models away that were used least lately; one that cannot be saved stays as long as another can go.

        Where none can be saved, the least used goes all the same: its last snapshot and the requests behind it are
        kept, and restore it.
        """
        held = list(self._held)
        while held and len(self._held) >= self.most:
            self._try_to_put_away(held.pop(0), last=not held)
        while len(self._held) >= self.most:
            self.drop(next(iter(self._held)))

    def _try_to_put_away(self, model: str, last: bool) -> None:
        try:
            self.put_away(model)
        except Exception as error:
            if last and waits(error):  # whoever needs the room waits for space
                raise
            self._tell(model, error)

    def put_away(self, model: str) -> None:
        """Saves a model, and takes it out of memory."""
        self.save_snapshot(model)
        self.drop(model)

    def drop(self, model: str) -> None:
        """Takes a model out of memory as it is; the next request to it restores it."""
        self._held.pop(model, None)
        if (name := pool_name(model)) in self.pool.names:
            self._on_engine(lambda: self.pool.remove(name))

    def close(self) -> None:
        """Saves all that are in memory; of one that cannot be saved, the last snapshot and its requests are kept."""
        for model in list(self._held):
            self._try_to_put_away(model, last=False)

    def save_due(self, model: str) -> None:
        """Saves a model whose last snapshot is long ago. Where that fails, it is tried later: the older snapshot and
        the requests behind it are kept as long."""
        if model not in self._held or time.monotonic() - self._held[model] < self.snapshot_seconds:
            return
        try:
            self.save_snapshot(model)
        except Exception as error:
            self._held[model] = time.monotonic()
            self._tell(model, error)

    def _tell(self, model: str, error: Exception) -> None:
        """Tells the log that a model could not be saved."""
        if waits(error):
            self.store.tell_waiting(error)
        else:
            log.error("the snapshot of %s failed", model, exc_info=error)

    def save_snapshot(self, model: str) -> None:
        """Saves a model with all that its training goes on from; requests so far are then not needed any more."""
        row = self.store.row("SELECT * FROM models WHERE id = ?", model)
        if row is None or row["durable"] == row["next"] - 1:
            return
        place = f"snapshots/{file_name(model)}/{row['next'] - 1}"
        self._on_engine(lambda: self.pool.save(pool_name(model), self.folder / place, optimizer=True))
        with self.store.changing() as db:
            self.store.change("models", model, durable=row["next"] - 1, snapshot=place)
            db.execute("UPDATE requests SET body = NULL WHERE owner = ? AND seq < ?", (model, row["next"]))
        if row["snapshot"] is not None and row["snapshot"] != place:
            discard(self.folder / row["snapshot"])
        if model in self._held:
            self._held[model] = time.monotonic()

    # --- requests ---

    def create(self, model: Row, request: Row) -> bytes:
        """Makes a model, by its first request."""
        self._make_room()
        try:
            result = self.begin(model, pool_name(model["id"]), request)
        except BaseException:
            self.drop(model["id"])
            raise
        self._held[model["id"]] = time.monotonic()
        return result

    def ask(self, request: Row) -> Ask:
        """Returns a kept `forward_backward`."""
        return asks.asked(request["body"], request["media"].partition("#")[0], self.words, self.engine.max_length,
                          request["media"].endswith("#forward"))  # fmt: skip

    def begin(self, model: Row, name: str, request: Row) -> bytes:
        """Makes a new adapter, or one of a checkpoint."""
        if request["kind"] == "load_weights":
            return self.load(model, name, request)
        spec = wanted_of(model)
        self._on_engine(lambda: self.pool.add(name, spec.made(), spec.where, seed=spec.seed))
        return json.dumps({"model_id": model["id"], "type": "create_model"}).encode()

    def load(self, model: Row, name: str, request: Row) -> bytes:
        """Reads a checkpoint into a model."""
        body = parsed(request["body"], LoadBody)
        found = self.store.row("SELECT * FROM checkpoints WHERE path = ? AND tenant = ?", body.path, request["tenant"])
        if found is None:
            raise LuthierError(f"there is no checkpoint {body.path!r}.")
        mine, theirs = wanted_of(model), Wanted(**json.loads(found["spec"]))
        if (mine.form, dict(mine.settings), mine.where) != (theirs.form, dict(theirs.settings), theirs.where):
            raise LuthierError(f"{body.path} is of {theirs.base}, {theirs.form} at {theirs.where}; this model is not.")
        place = self.folder / found["folder"]
        self._on_engine(lambda: self.pool.load(name, place, optimizer=body.optimizer, seed=mine.seed))
        told = {"path": body.path, "model_id": model["id"], "type": "load_weights"}
        return json.dumps(told).encode()

    def step(self, name: str, request: Row) -> bytes:
        """One step of AdamW, by what the request says of it."""
        p: AdamBody = parsed(request["body"], StepBody).adam_params
        told = self._on_engine(
            lambda: self.pool.step(
                name, p.learning_rate, (p.beta1, p.beta2), p.eps, p.weight_decay, p.grad_clip_norm or None
            )
        )
        return json.dumps({"metrics": {f"{key}:mean": value for key, value in told.items()}}).encode()

    def run(self, together: Sequence[tuple[str, Ask]]) -> list[bytes | LuthierError]:
        """Runs requests of different models, each as if alone; returns the result of each or what is wrong with it."""
        return [run.error or output(run.log_probs, {"loss:sum": run.loss}) for run in self._run(together)]

    def _run(self, together: Sequence[tuple[str, Ask]]) -> list[_Run]:
        runs = [_Run(name, ask, list(ask.pieces(PASS_TOKENS))) for name, ask in together]
        undo = self._on_engine(lambda: [self.pool.before_pass(run.name, run.adds_up) for run in runs])
        for backward in (True, False):  # apart, as a pass with gradients draws dropout
            of = [run for run in runs if run.ask.forward_only is not backward]
            while going := [run for run in of if run.error is None and run.done < len(run.pieces)]:
                works = [run.ask.work(run.name, run.pieces[run.done]) for run in going]
                found = self._on_engine(lambda works=works, b=backward: self.pool.forward_backward(works, backward=b))
                for run, outcome in zip(going, found, strict=True):
                    run.take(outcome)
        for run, forget in zip(runs, undo, strict=True):
            if run.error is not None:  # a restart does not run it again, so nothing is left of it
                self._on_engine(forget)
        return runs

    def save(self, model: Row, name: str, place: Path, optimizer: bool) -> int:
        """Writes a checkpoint; returns its size in bytes."""
        self._on_engine(lambda: self.pool.save(name, place, optimizer=optimizer))
        return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())

    def _on_engine(self, make: Callable[[], T]) -> T:
        """What `make` returns, run on the thread that the model belongs to, between two steps of decoding."""
        made: list[T] = []
        self.engine.between(lambda: made.append(make()))
        return made[0]


class _Run:
    """A request that goes through in pieces."""

    def __init__(self, name: str, ask: Ask, pieces: list[list[Datum]]) -> None:
        self.name, self.ask, self.pieces = name, ask, pieces
        self.done, self.loss = 0, 0.0
        self.log_probs: list[np.ndarray] = []
        self.error: LuthierError | None = None

    @property
    def adds_up(self) -> bool:
        """Whether a piece that fails leaves the gradients of those before it."""
        return len(self.pieces) > 1 and not self.ask.forward_only

    def take(self, outcome: Outcome) -> None:
        """Takes in what a pass gave the piece whose turn it was."""
        if outcome.error is not None:
            self.error = LuthierError(outcome.error)
            return
        data = self.pieces[self.done]
        self.log_probs += [each.cpu().float().numpy() for each in gathered(data, outcome.log_probs)]
        self.loss += outcome.loss
        self.done += 1


def wanted_of(model: Row) -> Wanted:
    """Returns what a model is, as it was asked for."""
    return Wanted(**json.loads(model["spec"]))


def kept(wanted: Wanted) -> str:
    """Returns what `wanted_of` reads."""
    return json.dumps(asdict(wanted))


def pool_name(model: str) -> str:
    """Returns the name under which a model is attached while it is trained."""
    return names.adapter_name("training", file_name(model))


def file_name(identity: str) -> str:
    """Returns an id as the name of a file."""
    return identity.replace(":", "-")
