"""Checkpoints and samplers: what was saved, how long it is kept, and which of it the engine has loaded."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import discard
from luthier.engine.engine import Engine
from luthier.serving.http.bodies import parsed
from luthier.serving.training_api.bodies import LoadBody, SaveBody, SaveSamplerBody
from luthier.serving.training_api.names import KINDS, adapter_name, checkpoint_name, checkpoint_path
from luthier.serving.training_api.store import Row, Store, told, untold
from luthier.serving.training_api.trainer import Trainer, file_name

UNNAMED_SECONDS = 86400.0
"""How long the weights of a sampler without a name are kept after it was last asked."""


class Checkpoints:
    """The checkpoints on disk, and the samplers that the engine serves; the scheduler's thread uses it."""

    def __init__(self, engine: Engine, store: Store, trainer: Trainer, folder: Path, most: int) -> None:
        """The engine serves the `most` samplers that were asked last."""
        self.engine, self.store, self.trainer, self.folder, self._most = engine, store, trainer, folder, most
        self._served: OrderedDict[str, str] = OrderedDict()
        """Paths by the name that the engine serves them under, the last asked last."""

    # --- saving ---

    def save_weights(self, model: Row, name: str, request: Row) -> bytes:
        """Keeps a model with what its training goes on from."""
        body = parsed(request["body"], SaveBody)
        path = self._save(model, name, "weights", body, request["id"], body.overwrite, optimizer=True)
        return json.dumps({"path": path, "type": "save_weights"}).encode()

    def save_for_sampler(self, model: Row, name: str, request: Row) -> bytes:
        """Keeps a model's weights, and serves them."""
        body = parsed(request["body"], SaveSamplerBody)
        path = self._save(model, name, "sampler_weights", body, request["id"], False, optimizer=False)
        self.serve(path)
        told: dict[str, Any] = {"type": "save_weights_for_sampler"}
        if body.path is not None:
            told["path"] = path
        if body.sampling_session_seq_id is not None:
            told["sampling_session_id"] = self.open_sampler(
                model["tenant"], model["session"], body.sampling_session_seq_id, wanted_base(model), path
            )
        return json.dumps(told).encode()

    def _save(
        self, model: Row, name: str, kind: str, body: SaveBody | SaveSamplerBody, request: str, overwrite: bool,
        optimizer: bool,
    ) -> str:  # fmt: skip
        short = checkpoint_name(body.path, body.seq_id, "unnamed" if kind == "sampler_weights" else "checkpoint")
        path, now = checkpoint_path(model["id"], kind, short), time.time()
        before = self.store.row("SELECT * FROM checkpoints WHERE path = ?", path)
        if before is not None and before["request"] != request and not overwrite:
            raise LuthierError(f"{path} is there already; give another name" + ", or overwrite=True." * optimizer)
        folder = f"checkpoints/{file_name(model['id'])}/{kind}/{short}"
        size = self.trainer.save(model, name, self.folder / folder, optimizer)
        hidden = kind == "sampler_weights" and body.path is None
        ttl = body.ttl_seconds if body.ttl_seconds is not None else UNNAMED_SECONDS if hidden else None
        with self.store.changing() as db:
            db.execute("DELETE FROM checkpoints WHERE path = ?", (path,))
            self.store.put(
                "checkpoints", path=path, tenant=model["tenant"], run=model["id"], kind=kind, name=short, folder=folder,
                spec=model["spec"], size=size, created=now, expires=None if ttl is None else now + ttl,
                hidden=int(hidden), request=request, metadata=told(body.user_metadata),
            )  # fmt: skip
        return path

    def open_sampler(self, tenant: str, session: str, number: int, base: str, path: str | None) -> str:
        """Returns the sampling session of a session with that number, new or as it was opened before."""
        made = f"{session}:sample:{number}"
        with self.store.changing():
            if self.store.row("SELECT id FROM samplers WHERE id = ?", made) is None:
                self.store.put("samplers", id=made, tenant=tenant, session=session, base=base, path=path,
                               created=time.time(), clients=0)  # fmt: skip
        return made

    # --- serving ---

    def serve(self, path: str) -> str:
        """Returns the name that the engine serves a checkpoint under, which is loaded then.

        Raises `LuthierError` for one that is gone.
        """
        row = self.store.row("SELECT * FROM checkpoints WHERE path = ?", path)
        if row is None:
            raise LuthierError(f"the weights {path} are gone; save them again.")
        name = adapter_name(row["run"], row["name"])
        if row["hidden"]:
            self.store.change("checkpoints", path, expires=time.time() + UNNAMED_SECONDS)
        if name in self._served:
            self._served.move_to_end(name)
            return name
        while len(self._served) >= self._most:
            self.withdraw(next(iter(self._served)))
        self.engine.load(name, self.folder / row["folder"])
        self._served[name] = path
        return name

    def withdraw(self, name: str) -> None:
        """Takes a sampler out of the engine, once its requests have ended."""
        if self._served.pop(name, None) is not None and name in self.engine.adapters():
            self.engine.unload(name)

    def serve_newest(self) -> None:
        """Loads the newest samplers with a name, as after a start."""
        query = (
            "SELECT path FROM checkpoints WHERE kind = 'sampler_weights' AND hidden = 0 ORDER BY created DESC LIMIT ?"
        )
        for row in reversed(self.store.rows(query, self._most)):
            self.serve(row["path"])

    # --- keeping ---

    def sweep(self) -> None:
        """Deletes what has outlived its time."""
        for row in self.store.rows("SELECT path FROM checkpoints WHERE expires < ?", time.time()):
            self.delete(row["path"])
        for row in self.store.rows("SELECT id, snapshot FROM models WHERE state = 'unloaded' AND snapshot IS NOT NULL"):
            self.store.change("models", row["id"], snapshot=None)
            discard(self.folder / row["snapshot"])

    def delete(self, path: str) -> None:
        """Deletes a checkpoint with its files."""
        row = self.store.row("SELECT * FROM checkpoints WHERE path = ?", path)
        if row is None:
            return
        self._save_dependants(path)
        self.withdraw(adapter_name(row["run"], row["name"]) if row["kind"] == "sampler_weights" else "")
        with self.store.changing() as db:
            db.execute("DELETE FROM checkpoints WHERE path = ?", (path,))
        discard(self.folder / row["folder"])

    def _save_dependants(self, path: str) -> None:
        """Saves the models that a restart would have to read from a checkpoint."""
        query = (
            "SELECT m.*, r.body FROM requests r JOIN models m ON r.owner = m.id "
            "WHERE r.kind = 'load_weights' AND r.state = 'done' AND r.seq > m.durable AND m.state = 'ready'"
        )
        for row in self.store.rows(query):
            if parsed(row["body"], LoadBody).path == path:
                self.trainer.hold(row)
                self.trainer.save_snapshot(row["id"])


def wanted_base(model: Row) -> str:
    """Returns the base of a model as its client spelled it."""
    return json.loads(model["spec"])["base"]


def listed(row: Row) -> dict[str, Any]:
    """Returns a checkpoint as the protocol tells it."""
    return {
        "checkpoint_id": f"{row['kind']}/{row['name']}",
        "checkpoint_type": KINDS[row["kind"]],
        "time": stamp(row["created"]),
        "tinker_path": row["path"],
        "size_bytes": row["size"],
        "public": False,
        "user_metadata": untold(row["metadata"]),
        "expires_at": None if row["expires"] is None else stamp(row["expires"]),
    }


def stamp(seconds: float) -> str:
    """Returns a moment as ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
