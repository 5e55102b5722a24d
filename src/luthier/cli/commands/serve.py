"""`luthier serve`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from luthier.cli.commands.generate import arguments_of
from luthier.cli.output import say, tell
from luthier.cli.parse import Fitted, Given
from luthier.core.errors import LuthierError, near
from luthier.core.paths import path_of

if TYPE_CHECKING:
    from luthier.serving.http.guard import Guard
    from luthier.serving.http.service import Service

KEY = "LUTHIER_API_KEY"
LEAST = {"rows": 1, "waiting": 0, "per_client": 1, "connections": 2, "patience": 0.1, "max_body": 1, "drain": 0,
         "train_adapters": 1}  # fmt: skip
"""Lowest values of flags."""


@dataclass(frozen=True)
class Serve(Fitted):
    """Serve a model and its adapters over HTTP with OpenAI's API, and a chat page at /.

    The base and every adapter are models of their own; requests for different ones share batches. Without
    --adapters-folder, adapters are those of the start. SIGTERM (or Ctrl-C) lets running answers end first.
    """

    group: ClassVar[str] = "Use"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier serve smollm2-135m --adapter sums=runs/sums --adapter words=runs/words",
        "luthier serve smollm2-135m --adapters-folder runs --port 8080",
        "luthier serve smollm2-135m --adapter sums=runs/sums --log answers.jsonl",
        "LUTHIER_API_KEY=secret luthier serve path/to/model --host 0.0.0.0",
        "luthier serve smollm2-135m --train --train-folder trained",
        "luthier serve MODEL --adapter select=s --adapter level=l --selection select --arguments level=level",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    adapter: tuple[str, ...] = field(default=(), kw_only=True)
    """An adapter as name=folder (a run or adapter folder), with the model name that it gets; may be repeated."""
    arguments: tuple[str, ...] = field(default=(), kw_only=True)
    """TOOL=ADAPTER: a served adapter that writes the arguments of that tool in answers of --selection to requests with
    tools (DualTune); may be repeated."""
    selection: str | None = field(default=None, kw_only=True)
    """With --arguments, the served adapter that chooses tools and writes all else. Default: the base."""
    host: str = field(default="127.0.0.1", kw_only=True)
    """Address to listen at. The default takes calls from this machine only; 0.0.0.0 takes them from everywhere."""
    port: int = field(default=8000, kw_only=True)
    """Port to listen at (0: a free one)."""
    api_key: str | None = field(default=None, kw_only=True)
    """Key that every client has to send. Default: $LUTHIER_API_KEY; without either, no key."""
    allowed_host: tuple[str, ...] = field(default=(), kw_only=True)
    """A further name that this server may be called by, as behind a proxy; may be repeated."""
    adapters_folder: Path | None = field(default=None, kw_only=True)
    """Folder below which clients may load adapters while the server runs. Default: they may not."""
    rows: int = field(default=32, kw_only=True)
    """The number of requests decoded together."""
    waiting: int = field(default=128, kw_only=True)
    """The number of requests that may wait; further ones get 429."""
    per_client: int | None = field(default=None, kw_only=True)
    """The most requests that one address may have running and waiting. Default: half of the places."""
    connections: int = field(default=512, kw_only=True)
    """The most connections at a time, half of them from one address; further ones get 503."""
    patience: float = field(default=30.0, kw_only=True)
    """Seconds that a client may take to send a request's head, or its body, or to read what is sent to it."""
    deterministic: bool = field(default=False, kw_only=True)
    """Decode row by row, so that an answer's numbers are the same to the last bit whatever else runs; slower."""
    max_length: int | None = field(default=None, kw_only=True)
    """The most tokens of a prompt and its answer together. Default: the model's own bound."""
    max_body: int = field(default=2**20, kw_only=True)
    """The longest request in bytes; longer ones get 413."""
    drain: float = field(default=30.0, kw_only=True)
    """Seconds that running answers get to finish once the server is stopped."""
    log: Path | None = field(default=None, kw_only=True)
    """A .jsonl file that prompts and complete answers are appended to, as `luthier monitor` reads them: what your users
    write lands on this disk, readable by you alone. Default: nothing is kept."""
    train: bool = field(default=False, kw_only=True)
    """Answer the training API of the Tinker client at /api/v1 as well: what it trains are adapters of this model."""
    train_folder: Path = field(default=Path("trained"), kw_only=True)
    """With --train, where sessions, checkpoints and what was asked are kept, over restarts."""
    train_database: str | None = field(default=None, kw_only=True)
    """With --train, the URL of a Postgres database (postgresql://…) for sessions and requests; weights stay in the
    folder. Default: a file of SQLite in the folder."""
    train_adapters: int = field(default=16, kw_only=True)
    """With --train, how many models in training, and how many saved ones to sample from, are in memory at a time."""
    tenants: Path | None = field(default=None, kw_only=True)
    """With --train, a TOML file with a table for each tenant: its key and its quotas. Needs an API key, as /v1 shows
    all adapters. Default: whoever has the API key is one tenant; without one, everybody who sends a key."""
    dtype: str = field(default="float32", kw_only=True)
    """Dtype of the base: float32, bfloat16, float16 or auto."""

    def run(self, given: Given) -> None:
        folders = named(self.adapter)
        for what, least in LEAST.items():
            value = getattr(self, what)
            if value is not None and not value >= least:
                raise LuthierError(f"--{what.replace('_', '-')} is {value}; expected {least} or more.")
        if self.adapters_folder is not None and not path_of(self.adapters_folder).is_dir():
            raise LuthierError(f"--adapters-folder: there is no folder {self.adapters_folder}.")
        key = self.key()
        self.refuse_unused(key)
        arguments = arguments_of(self.arguments)
        if self.selection is not None and not self.arguments:
            raise LuthierError("--selection names who chooses tools; say who writes their arguments (--arguments).")
        for name in (self.selection, *arguments.values()):
            if name is not None and name not in folders:
                raise LuthierError(f"--arguments, --selection: no --adapter is named {name!r}{near(name, folders)}")
        need_extra()
        if self.log is not None:
            from luthier.serving.http.log import refuse_unwritable

            refuse_unwritable(self.log)

        from luthier.models import refuse_unwritten, task_of
        from luthier.serving.http.guard import LOOPBACK, Guard
        from luthier.serving.http.listening import address, bind
        from luthier.serving.http.server import serve
        from luthier.serving.http.threads import run_in_thread

        base = model_name(self.model)
        if base in folders:
            raise LuthierError(f"--adapter: {base!r} is what the base is called; name the adapter otherwise.")
        local = self.host in LOOPBACK
        if not local and key is None:
            tell("warning", f"everyone who reaches {self.host} may use this server: no API key is set (--api-key).")
        with bind(self.host, self.port) as bound:
            refuse_unwritten(self.model, None, task_of(self.model, None), tasks=("causal-lm",))
            service = run_in_thread(lambda: self.service(base, folders))
            hosts = (*LOOPBACK, *self.allowed_host) if local or self.allowed_host else ()
            where = address(self.host, bound)
            models = f"{base} and {len(folders)} adapter{'s' * (len(folders) != 1)}"

            def ready() -> None:
                say(f"{models}: chat at {where}, API at {where}/v1. Ctrl-C ends it.")
                if self.train:
                    kept = f"{self.train_folder}{' and Postgres' if self.train_database is not None else ''}"
                    say(f"training API at {where} (TINKER_BASE_URL), kept in {kept}.")

            guard = Guard(key, hosts, self.max_body, self.patience)
            if self.train:
                guard = run_in_thread(lambda: self.training(service, key, guard))
            serve(service, guard, bound, self.drain, ready, self.connections)

    def service(self, name: str, adapters: Mapping[str, Path]) -> Service:
        """Returns the model, called `name`, with its adapters, ready to serve."""
        from luthier.cli.base import base_of
        from luthier.engine.engine import Engine
        from luthier.serving.http.service import Service

        loaded = base_of(self.model, None, dtype=self.dtype, task="causal-lm")
        engine = Engine(
            loaded.model,
            loaded.processor,
            adapters=adapters,
            rows=self.rows,
            waiting=self.waiting,
            max_length=self.max_length,
            deterministic=self.deterministic,
        )
        share = self.per_client or max(1, engine.places // 2)
        return Service(engine, loaded.processor, name, self.adapters_folder, adapters, share, self.log,
                       arguments_of(self.arguments), self.selection)  # fmt: skip

    def refuse_unused(self, key: str | None) -> None:
        """Raises for flags of the training API without it, and for tenants beside an open /v1."""
        from luthier.serving.training_api.database import SCHEMES

        if not self.train:
            unused = [flag for flag, given in (("--tenants", self.tenants is not None),
                                               ("--train-folder", self.train_folder != Path("trained")),
                                               ("--train-database", self.train_database is not None),
                                               ("--train-adapters", self.train_adapters != 16)) if given]  # fmt: skip
            if unused:
                raise LuthierError(f"{unused[0]} says something of the training API; give --train as well.")
        elif self.train_database is not None and not self.train_database.startswith(SCHEMES):
            raise LuthierError(
                f"--train-database: expected a URL that begins with {SCHEMES[0]}; without the flag, sessions and "
                "requests are kept in a file of --train-folder."
            )
        elif self.tenants is not None and key is None:
            raise LuthierError("--tenants: /v1 shows the adapters of all of them; give --api-key, which is not theirs.")

    def training(self, service: Service, key: str | None, guard: Guard) -> Guard:
        """Puts the training API beside OpenAI's; returns a guard that lets its keys through."""
        from luthier.serving.training_api.routes import PREFIX
        from luthier.serving.training_api.service import LARGEST_BODY, TrainingService
        from luthier.serving.training_api.tenants import OWN, Tenants, read_tenants

        listed = {} if self.tenants is None else read_tenants(self.tenants)
        for whose, each in [("the API key", key if not listed else None), *((n, k) for n, (k, _) in listed.items())]:
            if each is not None and not each.startswith(OWN):
                tell("warning", f"{whose}: the official client sends only keys that begin with {OWN!r}; this does not.")
        service.training = TrainingService(
            service.engine,
            service.base,
            self.train_folder,
            Tenants(key, listed),
            also=[self.model],
            tokenizer=self.model,
            adapters=self.train_adapters,
            samplers=self.train_adapters,
            together=not self.deterministic,
            database=self.train_database,
        )
        return dataclasses.replace(guard, own_keys=PREFIX, own_keys_body=max(self.max_body, LARGEST_BODY))

    def key(self) -> str | None:
        """Returns the API key, from the flag or the environment."""
        return api_key(self.api_key)


def api_key(given: str | None) -> str | None:
    """Returns the API key, from the flag or the environment."""
    key = os.environ.get(KEY) if given is None else given
    if key is not None and not (key.strip() and key.isascii() and key.isprintable()):
        raise LuthierError(f"the API key (--api-key or ${KEY}) is empty or not printable ASCII.")
    return None if key is None else key.strip()


def named(adapters: Iterable[str]) -> dict[str, Path]:
    """Folders of adapters by name, from `name=folder`, each of which holds one."""
    from luthier.core.adapters.attach import NAME
    from luthier.core.storage.folder import read_adapter
    from luthier.models import fitted_task, refuse_unwritten

    found: dict[str, Path] = {}
    for each in adapters:
        name, equals, folder = each.partition("=")
        if not (name and equals and folder):
            raise LuthierError(f"--adapter {each!r}: expected name=folder, as in --adapter sums=runs/sums.")
        if not NAME.fullmatch(name):
            raise LuthierError(f"--adapter {each!r}: a name has letters, digits, '_' and '-' (at most 64).")
        if name in found:
            raise LuthierError(f"--adapter: two adapters are named {name!r}.")
        found[name], spec = read_adapter(folder)
        refuse_unwritten(spec["base"]["name"] or "MODEL", folder, fitted_task(spec), tasks=("causal-lm",))
    return found


def model_name(model: str) -> str:
    """Returns what clients call the base: its name as given, or that of its folder or file."""
    path = os.path.expanduser(model)
    return os.path.basename(os.path.realpath(path)) if os.path.exists(path) else model


def need_extra() -> None:
    """Raises where the libraries of the server are not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise LuthierError(f"luthier serve needs {error.name}: pip install 'luthier[serve]'") from error
