"""What there is, as the protocol tells it: models, training runs, checkpoints, and samples that are over."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from typing import Any

from luthier.engine.engine import Engine
from luthier.serving.training_api import names
from luthier.serving.training_api.checkpoints import listed, stamp
from luthier.serving.training_api.owned import Owned
from luthier.serving.training_api.store import DONE, FAILED, Row, Store, untold
from luthier.serving.training_api.tenants import Tenant
from luthier.serving.training_api.trainer import wanted_of


class Shelf:
    """Tells what is kept; of what is kept it changes only for how long."""

    def __init__(self, engine: Engine, store: Store, owned: Owned, known: Collection[str], tokenizer: str) -> None:
        """`known` are the names of the base; `tokenizer` is what clients load its tokenizer by."""
        self.engine, self.store, self.owned, self.known, self.tokenizer = engine, store, owned, known, tokenizer

    def capabilities(self) -> dict[str, Any]:
        """Returns the models that can be trained and sampled: the base, under each of its names."""
        model = {"max_context_length": self.engine.max_length, "trainable": True, "sampleable": True}
        return {"supported_models": [{"model_name": name, **model} for name in sorted(self.known)]}

    def info(self, tenant: Tenant, model: str) -> dict[str, Any]:
        """Returns what a model is."""
        row = self.owned.model(tenant, model)
        wanted = wanted_of(row)
        name = wanted.base.partition("?")[0]
        data = {"arch": self.engine.model.config.model_type, "model_name": name, "tokenizer_id": self.tokenizer}
        return {
            "type": "get_info", "model_id": model, "model_data": data, "model_name": name,
            "is_lora": wanted.form == "lora", "lora_rank": wanted.rank,
        }  # fmt: skip

    def run(self, row: Row) -> dict[str, Any]:
        """Returns a training run as the protocol tells it."""
        wanted = wanted_of(row)
        latest = {kind: self._latest(row["id"], kind) for kind in ("weights", "sampler_weights")}
        return {
            "training_run_id": row["id"], "base_model": wanted.base, "model_owner": row["tenant"],
            "is_lora": wanted.form == "lora", "corrupted": row["state"] == "failed", "lora_rank": wanted.rank,
            "last_request_time": stamp(row["used"]), "last_checkpoint": latest["weights"],
            "last_sampler_checkpoint": latest["sampler_weights"], "user_metadata": untold(row["metadata"]),
        }  # fmt: skip

    def _latest(self, run: str, kind: str) -> dict[str, Any] | None:
        query = "SELECT * FROM checkpoints WHERE run = ? AND kind = ? AND hidden = 0 ORDER BY created DESC LIMIT 1"
        row = self.store.row(query, run, kind)
        return None if row is None else listed(row)

    def keep(self, tenant: Tenant, run: str, kind: str, name: str, seconds: int | None) -> None:
        """Sets how long a checkpoint is kept from now; None: for ever."""
        row = self.owned.checkpoint(tenant, names.checkpoint_path(run, kind, name))
        self.store.change("checkpoints", row["path"], expires=None if seconds is None else time.time() + seconds)

    def weights_info(self, tenant: Tenant, path: str) -> dict[str, Any]:
        """Returns what a checkpoint is of."""
        spec = json.loads(self.owned.checkpoint(tenant, path)["spec"])
        flags = {key: spec[key] for key in ("train_unembed", "train_mlp", "train_attn")}
        return {"base_model": spec["base"], "is_lora": spec["form"] == "lora", "lora_rank": spec["rank"], **flags}

    def completions(self, tenant: Tenant, sampler: str, clone: int, cursor: int) -> tuple[list[dict[str, Any]], int]:
        """Returns the samples of a sampling session that are over since `cursor`, and the next cursor."""
        self.owned.sampler(tenant, sampler)
        query = ("SELECT id, state, LENGTH(result) size, finished FROM requests WHERE owner = ? AND state IN (?, ?) "
                 "AND seq / 1000000000 = ? AND finished * 1000000 >= ? ORDER BY finished")  # fmt: skip
        rows = self.store.rows(query, sampler, DONE, FAILED, clone, cursor + 1)
        found: list[dict[str, Any]] = []
        for row in rows:
            failed = row["state"] == FAILED
            size = {} if failed or row["size"] is None else {"response_payload_uncompressed_size": row["size"]}
            found.append({"state": "failed" if failed else "finished", "request_id": row["id"], **size})
        return found, max([cursor, *(int(row["finished"] * 1_000_000) for row in rows)])
