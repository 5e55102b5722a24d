"""The training API behind its routes: what it accepts and keeps, and what it tells."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from luthier.core.errors import LuthierError
from luthier.core.locks import lock
from luthier.core.paths import path_of
from luthier.engine.engine import Engine
from luthier.serving.http.refusal import RETRY, Refusal
from luthier.serving.training_api import asks, names
from luthier.serving.training_api.bodies import (
    LoadBody,
    ModelBody,
    SampleBody,
    SamplingSessionBody,
    SessionBody,
)
from luthier.serving.training_api.checkpoints import Checkpoints
from luthier.serving.training_api.owned import Owned
from luthier.serving.training_api.sampling import sample_of
from luthier.serving.training_api.scheduler import Scheduler
from luthier.serving.training_api.shelf import Shelf
from luthier.serving.training_api.store import WAITING, Repeated, Store, told
from luthier.serving.training_api.tenants import Tenant, Tenants
from luthier.serving.training_api.trainer import Trainer, kept

log = logging.getLogger(__name__)
DATABASE = "training.sqlite"
LARGEST_BODY = 2**26
"""Bytes of a request, packed or not."""
QUIET = 3600.0
"""Seconds without a sign of a session after which its models count no more as its tenant's."""


class TrainingService:
    """Sessions, models, samplers and checkpoints of all tenants, in one folder."""

    def __init__(
        self,
        engine: Engine,
        base: str,
        folder: str | Path,
        tenants: Tenants,
        *,
        also: Collection[str] = (),
        tokenizer: str | None = None,
        adapters: int = 16,
        samplers: int = 16,
        together: bool = True,
        database: str | None = None,
    ) -> None:
        """`also` are further names of the base; `tokenizer` is what clients load its tokenizer by. `adapters` models in
        training are in memory at a time, and `samplers` saved ones are served; the others wait on disk. `database` is
        the URL of a Postgres database; without it, all but weights is kept in a file of the folder."""
        self.folder = path_of(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.engine, self.base, self.tenants = engine, base, tenants
        self._release = lock(self.folder, patience=0)
        self.known = {base, *also}
        self.tokenizer = tokenizer or base
        self.store = Store(database or self.folder / DATABASE)
        self.owned = Owned(self.store)
        self.shelf = Shelf(engine, self.store, self.owned, self.known, self.tokenizer)
        self.trainer = Trainer(engine, self.store, self.folder, base, adapters, together)
        self.checkpoints = Checkpoints(engine, self.store, self.trainer, self.folder, samplers)
        self.over: Callable[[str], None] = lambda request_id: None
        """Called with the id of each request that is over, on any thread."""
        self.scheduler = Scheduler(self.store, self.trainer, self.checkpoints, lambda each: self.over(each))
        self.draining = False

    def start(self) -> None:
        """Starts its thread, once the engine runs."""
        self.scheduler.start()

    def close(self) -> None:
        """Ends its thread and saves all models; the engine still runs."""
        self.draining = True
        self.scheduler.close()
        self.store.close()
        if self._release is not None:
            self._release()

    # --- sessions ---

    def open_session(self, tenant: Tenant, body: SessionBody) -> str:
        """Returns the id of a new session."""
        made, now = f"s{secrets.token_hex(6)}", time.time()
        kept = told({"tags": body.tags, "user_metadata": body.user_metadata, "display_name": body.display_name})
        self.store.put("sessions", id=made, tenant=tenant.name, created=now, seen=now, told=kept)
        return made

    def see(self, tenant: Tenant, session: str) -> None:
        """Notes a sign of life."""
        self.owned.session(tenant, session)
        self.store.change("sessions", session, seen=time.time())

    # --- requests that make something new ---

    def create_model(self, tenant: Tenant, raw: bytes, body: ModelBody) -> str:
        """Accepts a new model; returns the id of its future."""
        self.see(tenant, body.session_id)
        model = f"{body.session_id}:train:{body.model_seq_id}"
        if (known := self._known(model, 0, raw)) is not None:
            return known
        lora = body.lora_config
        seed = secrets.randbits(31) if lora.seed is None else lora.seed
        wanted = names.wanted(self.engine.model, body.base_model, self.known, lora.model_dump(), seed)
        return self._new(tenant, body.session_id, model, kept(wanted), "create_model", raw, body.user_metadata)

    def load_model(self, tenant: Tenant, raw: bytes, body: LoadBody) -> str:
        """Accepts a checkpoint as a new model, or into one that is there."""
        if body.model_id is not None and body.seq_id is not None and body.session_id is None:
            self.owned.checkpoint(tenant, body.path)
            return self.ordered(tenant, "load_weights", body.model_id, body.seq_id, raw)
        if body.session_id is None or body.model_seq_id is None or body.model_id is not None:
            raise Refusal(400, "load_weights: expected session_id and model_seq_id, or model_id and seq_id.")
        self.see(tenant, body.session_id)
        model = f"{body.session_id}:train:{body.model_seq_id}"
        if (known := self._known(model, 0, raw)) is not None:
            return known
        found = self.owned.checkpoint(tenant, body.path)
        spec = json.loads(found["spec"])
        if body.base_model is not None and body.base_model not in (spec["base"], spec["base"].partition("?")[0]):
            raise Refusal(400, f"base_model is {body.base_model!r:.120}; the checkpoint is of {spec['base']!r}.")
        if body.optimizer and found["kind"] != "weights":
            raise Refusal(400, f"{body.path} was saved for sampling, without the optimiser's state.")
        return self._new(tenant, body.session_id, model, found["spec"], "load_weights", raw, body.user_metadata)

    def _new(
        self, tenant: Tenant, session: str, model: str, spec: str, kind: str, raw: bytes, metadata: Mapping | None
    ) -> str:
        self._refuse_full(tenant)
        now = time.time()
        query = ("SELECT COUNT(*) n FROM models m JOIN sessions s ON m.session = s.id WHERE m.tenant = ? "
                 "AND m.state IN ('new', 'ready') AND s.finished IS NULL AND s.seen > ?")  # fmt: skip
        with self.store.changing():
            counted = self.store.row(query, tenant.name, now - QUIET)
            if counted is not None and counted["n"] >= tenant.quota.adapters:
                most = tenant.quota.adapters
                raise Refusal(403, f"this tenant trains {counted['n']} models, and may train {most} at a time; end a "
                              "session, or unload one.", code="quota")  # fmt: skip
            self.store.put("models", id=model, session=session, tenant=tenant.name, spec=spec, state="new", next=0,
                           durable=-1, created=now, used=now, metadata=told(metadata))  # fmt: skip
            made = self.store.accept(tenant.name, model, 0, kind, digest(raw), asks.JSON, raw, 0)
        self.scheduler.wake()
        return made

    # --- requests in the order of a model ---

    def forward_backward(self, tenant: Tenant, raw: bytes, media: str, forward_only: bool) -> str:
        """Accepts a pass; returns the id of its future."""
        model, seq = asks.head(raw, media)

        def check() -> int:
            return asks.asked(raw, media, self.trainer.words, self.engine.max_length, forward_only).tokens

        return self.ordered(tenant, "forward_backward", model, seq, raw, media + "#forward" * forward_only, check)

    def ordered(
        self, tenant: Tenant, kind: str, model: str, seq: int, raw: bytes, media: str = asks.JSON,
        check: Callable[[], int] = lambda: 0,
    ) -> str:  # fmt: skip
        """Accepts a request with a number; returns the id of its future, of the first one where it is repeated.

        One that is refused for what it is leaves its number free of waiting: later ones go on without it.
        """
        row = self.owned.model(tenant, model)
        if (known := self._known(model, seq, raw)) is not None:
            return known
        self._refuse_full(tenant)
        try:
            if row["state"] not in ("new", "ready"):
                raise Refusal(400, f"model {model!r} is {row['state']}.", code="model_" + row["state"])
            if seq < row["next"]:
                raise Refusal(400, f"seq_id {seq} of {model} was refused, or given up; numbers are used once.")
            tokens = check()
            self._refuse_beyond(tenant, tokens)
            made = self.store.accept(tenant.name, model, seq, kind, digest(raw), media, raw, tokens)
        except (Refusal, LuthierError) as error:
            why = error.detail if isinstance(error, Refusal) else str(error)
            self.store.refuse(tenant.name, model, seq, why)
            self.scheduler.wake()
            raise
        self.store.change("models", model, used=time.time())
        self.scheduler.wake()
        return made

    def _known(self, owner: str, seq: int, raw: bytes) -> str | None:
        """Returns the future of a request that was accepted before."""
        try:
            found = self.store.request(owner, seq, digest(raw))
        except Repeated as error:
            raise Refusal(400, str(error), code="repeated") from error
        return None if found is None else found["id"]

    def _refuse_full(self, tenant: Tenant) -> None:
        """429 where a tenant has enough waiting: its client sends the same again, with the same number."""
        if self.draining:
            raise Refusal(503, "the server is stopping and takes nothing new.", code="draining", headers=RETRY)
        count, size = self.store.waiting(tenant.name)
        if count >= tenant.quota.waiting or size >= tenant.quota.bytes:
            raise Refusal(429, f"{count} requests of this tenant wait, of {size:,} bytes; send it again later.",
                          code="queue_full", headers=RETRY)  # fmt: skip

    def _refuse_beyond(self, tenant: Tenant, tokens: int) -> None:
        most, used = tenant.quota.tokens, self.store.used_today(tenant.name)
        if most is not None and used + tokens > most:
            raise Refusal(403, f"this tenant used {used:,} of {most:,} tokens today, and this takes {tokens:,}.",
                          code="quota")  # fmt: skip

    # --- samples ---

    def open_sampler(self, tenant: Tenant, body: SamplingSessionBody) -> str:
        """Returns the id of a sampling session, of the base or of a checkpoint."""
        self.see(tenant, body.session_id)
        base, path = body.base_model, body.model_path
        if path is not None:
            base = json.loads(self.owned.checkpoint(tenant, path)["spec"])["base"]
        elif base is None or "?" in base:
            raise Refusal(400, "create_sampling_session: expected base_model, without a form, or model_path.")
        else:
            names.plain_base(base, self.known)
        made = self.checkpoints.open_sampler(tenant.name, body.session_id, body.sampling_session_seq_id, base, path)
        if self.owned.sampler(tenant, made)["path"] != path:
            raise Refusal(400, f"{made} was opened for something else; numbers are used once.", code="repeated")
        return made

    def sample(self, tenant: Tenant, raw: bytes, body: SampleBody) -> tuple[str, list[str]]:
        """Accepts a sample; returns the id of its future, and one for each of its sequences."""
        self.owned.sampler(tenant, body.sampling_session_id)
        owner, seq = body.sampling_session_id, body.seq_id
        made = self._known(owner, seq, raw)
        if made is None:
            self._refuse_full(tenant)
            checked = sample_of(body, self.trainer.words, self.engine.max_length)
            if body.num_samples > self.engine.places:
                raise Refusal(
                    400, f"num_samples is {body.num_samples}; this server decodes {self.engine.places} at most."
                )
            tokens = len(checked.prompt) + body.num_samples * (body.sampling_params.max_tokens or 1)
            self._refuse_beyond(tenant, tokens)
            if body.sampling_params.seed is None:  # so that a restart draws the same again
                body.sampling_params.seed = secrets.randbits(63)
            stored = body.model_dump_json().encode()
            made = self.store.accept(tenant.name, owner, seq, "sample", digest(raw), asks.JSON, stored, tokens)
            self.scheduler.wake()
        return made, [f"{made}:{index}" for index in range(body.num_samples)]

    def join(self, tenant: Tenant, sampler: str) -> int:
        """Returns a number for one more client of a sampling session; the first client is 0."""
        with self.store.changing():
            number = self.owned.sampler(tenant, sampler)["clients"] + 1
            self.store.change("samplers", sampler, clients=number)
        return number

    def cancel(self, tenant: Tenant, request_id: str) -> None:
        """Ends a sample that waits or runs; one that is over stays as it is."""
        request = self.owned.future(tenant, request_id)
        if request["kind"] != "sample":
            raise Refusal(400, f"{request['kind']} cannot be cancelled: what follows it counts on it.")
        if request["state"] == WAITING:
            self.store.finish(request, None, "the sample was cancelled.", "user")
            self.scheduler.cancel(request_id)
            self.over(request_id)

    # --- what ends ---

    def forget(self, tenant: Tenant, run: str, kind: str, name: str) -> None:
        """Deletes a checkpoint; what samples with it meanwhile may end."""
        path = self.owned.checkpoint(tenant, names.checkpoint_path(run, kind, name))["path"]
        self.scheduler.errand(lambda: self.checkpoints.delete(path))

    def unload(self, tenant: Tenant, model: str) -> str:
        """Ends a model: nothing more is trained, and its checkpoints stay. Returns the id of a future that is over."""
        self.owned.model(tenant, model)
        owner, raw = f"{model}:unload", model.encode()
        if (known := self._known(owner, 0, raw)) is not None:
            return known
        with self.store.changing():
            made = self.store.accept(tenant.name, owner, 0, "unload_model", digest(raw), asks.JSON, raw, 0)
            result = json.dumps({"model_id": model, "type": "unload_model"}).encode()
            self.store.finish(self.owned.future(tenant, made), result)
            self.store.change("models", model, state="unloaded")
        self.scheduler.errand(lambda: self.trainer.drop(model))
        return made


def digest(raw: bytes) -> str:
    """Returns the mark by which a repeated request is known."""
    return hashlib.sha256(raw).hexdigest()
