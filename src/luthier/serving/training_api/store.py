"""What the training API keeps, in one database: sessions, models, requests with their results, and checkpoints.

A request is kept before it is answered, and a result before it is told, so that a killed server goes on where it was.
Whoever asks sees only what belongs to its tenant.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.guard import is_full, reason
from luthier.serving.training_api.database import Database, Unreachable, opened

log = logging.getLogger(__name__)
TABLES = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created REAL NOT NULL, seen REAL NOT NULL, finished TEXT,
    told TEXT NOT NULL);
CREATE TABLE models (
    id TEXT PRIMARY KEY, session TEXT NOT NULL, tenant TEXT NOT NULL, spec TEXT NOT NULL, state TEXT NOT NULL,
    next INTEGER NOT NULL, durable INTEGER NOT NULL, snapshot TEXT, created REAL NOT NULL, used REAL NOT NULL,
    metadata TEXT);
CREATE TABLE requests (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, owner TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL,
    digest TEXT NOT NULL, media TEXT NOT NULL, body BLOB, tokens INTEGER NOT NULL, state TEXT NOT NULL, result BLOB,
    error TEXT, category TEXT, created REAL NOT NULL, finished REAL, UNIQUE (owner, seq));
CREATE INDEX requests_by_state ON requests (state, kind);
CREATE TABLE samplers (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, session TEXT NOT NULL, base TEXT NOT NULL, path TEXT,
    created REAL NOT NULL, clients INTEGER NOT NULL);
CREATE TABLE checkpoints (
    path TEXT PRIMARY KEY, tenant TEXT NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    folder TEXT NOT NULL, spec TEXT NOT NULL, size INTEGER NOT NULL, created REAL NOT NULL, expires REAL,
    hidden INTEGER NOT NULL, request TEXT NOT NULL, metadata TEXT);
CREATE TABLE used (tenant TEXT NOT NULL, day TEXT NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (tenant, day));
"""
Row = Mapping[str, Any]
WAITING, DONE, FAILED, REFUSED = "waiting", "done", "failed", "refused"
"""States of a request. A refused one has a number that nothing waits for."""


class Repeated(LuthierError):
    """A number that was used for another request."""


class Store:
    """One database, one connection, any thread."""

    def __init__(self, where: str | Path) -> None:
        """`where` is a file of SQLite or the URL of a Postgres database."""
        self._lock = threading.RLock()
        self._told_waiting = False
        self._db = opened(where, TABLES)

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._db.close()

    @contextmanager
    def changing(self) -> Iterator[Database]:
        """All that is done within is kept, or nothing of it, as where the disk is full."""
        with self._lock:
            if self._db.in_transaction:  # of an outer block of this thread
                yield self._db
                return
            try:
                self._db.execute(self._db.begin)
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if waits(error):
                    self.tell_waiting(error)
                if self._db.in_transaction:  # SQLite may have rolled it back by itself, as on a full disk
                    self._db.execute("ROLLBACK")
                raise
            self._told_waiting = False

    def tell_waiting(self, error: BaseException) -> None:
        """Tells the log of a full disk, or of a database that is gone, once until something could be kept again."""
        if not self._told_waiting and is_full(error):
            log.error("the training API's folder is full (%s): requests wait until there is space.", reason(error))
        elif not self._told_waiting:
            log.error("%s: requests wait until it can be used.", str(error).rstrip("."))
        self._told_waiting = True

    def rows(self, query: str, *values: Any) -> list[Row]:
        """Returns the rows of a query."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> Row | None:
        """Returns its first row."""
        return next(iter(self.rows(query, *values)), None)

    def put(self, table: str, **values: Any) -> None:
        """Adds a row."""
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        with self.changing() as db:
            db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))

    def change(self, table: str, key: str, **values: Any) -> None:
        """Changes the row with that id (or path)."""
        column = "path" if table == "checkpoints" else "id"
        sets = ", ".join(f"{name} = ?" for name in values)
        with self.changing() as db:
            db.execute(f"UPDATE {table} SET {sets} WHERE {column} = ?", (*values.values(), key))

    # --- requests ---

    def request(self, owner: str, seq: int, digest: str) -> Row | None:
        """Returns what was accepted under that number before; raises `Repeated` where it was something else."""
        found = self.row("SELECT * FROM requests WHERE owner = ? AND seq = ?", owner, seq)
        if found is not None and found["digest"] != digest:
            raise Repeated(f"seq_id {seq} of {owner} was used for another request; numbers are used once.")
        return found

    def accept(
        self, tenant: str, owner: str, seq: int, kind: str, digest: str, media: str, body: bytes, tokens: int
    ) -> str:
        """Keeps a request that is to be run; returns its id."""
        made = f"{owner}:{seq}"
        with self.changing():
            self.put(
                "requests",
                id=made,
                tenant=tenant,
                owner=owner,
                seq=seq,
                kind=kind,
                digest=digest,
                media=media,
                body=body,
                tokens=tokens,
                state=WAITING,
                created=time.time(),
            )
            if tokens:
                self.count(tenant, tokens)
        return made

    def refuse(self, tenant: str, model: str, seq: int, why: str) -> None:
        """Notes that a number of a model was refused, so that later ones do not wait for it."""
        with self.changing():
            if self.row("SELECT id FROM requests WHERE owner = ? AND seq = ?", model, seq) is None:
                now = time.time()
                self.put(
                    "requests", id=f"{model}:{seq}", tenant=tenant, owner=model, seq=seq, kind="refused", digest="",
                    media="", tokens=0, state=REFUSED, error=why, created=now, finished=now,
                )  # fmt: skip
            self.advance(model)

    def finish(self, request: Row, result: bytes | None, error: str | None = None, category: str | None = None) -> None:
        """Keeps a result, or why there is none; the model goes on to its next number."""
        state = DONE if error is None else FAILED
        with self.changing() as db:
            db.execute(
                "UPDATE requests SET state = ?, result = ?, error = ?, category = ?, finished = ? "
                "WHERE id = ? AND state = ?",
                (state, result, error, category, time.time(), request["id"], WAITING),
            )
            self.advance(request["owner"])

    def advance(self, model: str) -> None:
        """Moves a model's next number behind those that are over."""
        with self.changing() as db:
            found = self.row("SELECT next FROM models WHERE id = ?", model)
            if found is None:
                return
            number = found["next"]
            over = "SELECT 1 FROM requests WHERE owner = ? AND seq = ? AND state != ?"
            while self.row(over, model, number, WAITING) is not None:
                number += 1
            db.execute("UPDATE models SET next = ? WHERE id = ?", (number, model))

    def ready(self) -> list[Row]:
        """Returns the request of each model whose turn it is, the oldest first."""
        return self.rows(
            "SELECT r.*, m.session FROM models m JOIN requests r ON r.owner = m.id AND r.seq = m.next "
            "WHERE r.state = ? AND m.state IN ('new', 'ready') ORDER BY r.created",
            WAITING,
        )

    def stuck(self, before: float) -> list[Row]:
        """Returns requests that wait since `before` for a number that has not come, and that number."""
        return self.rows(
            "SELECT r.*, m.next FROM models m JOIN requests r ON r.owner = m.id WHERE r.state = ? AND r.seq > m.next "
            "AND r.created < ? AND NOT EXISTS (SELECT 1 FROM requests o WHERE o.owner = m.id AND o.seq = m.next)",
            WAITING,
            before,
        )

    def forget(self, before: float) -> None:
        """Lets go of the results, and of the bodies of samples, of requests that were over before that moment.

        That they were is kept: a repeated request is known for ever, and asking for its result is told that it is gone.
        """
        with self.changing() as db:
            db.execute(
                "UPDATE requests SET result = NULL WHERE state = ? AND finished < ? AND result IS NOT NULL",
                (DONE, before),
            )
            db.execute(
                "UPDATE requests SET body = NULL WHERE kind = 'sample' AND state != ? AND finished < ? "
                "AND body IS NOT NULL",
                (WAITING, before),
            )

    def waiting(self, tenant: str) -> tuple[int, int]:
        """Returns how many requests of a tenant wait, and their bytes."""
        found = self.row(
            "SELECT COUNT(*) n, COALESCE(SUM(LENGTH(body)), 0) b FROM requests WHERE tenant = ? AND state = ?",
            tenant,
            WAITING,
        )
        return (0, 0) if found is None else (found["n"], found["b"])

    def count(self, tenant: str, tokens: int) -> None:
        """Adds to what a tenant used today."""
        with self.changing() as db:
            db.execute(
                "INSERT INTO used VALUES (?, ?, ?) ON CONFLICT (tenant, day) DO UPDATE SET tokens = used.tokens + ?",
                (tenant, today(), tokens, tokens),
            )

    def used_today(self, tenant: str) -> int:
        """Returns the tokens that a tenant trained on and asked for today (UTC)."""
        found = self.row("SELECT tokens FROM used WHERE tenant = ? AND day = ?", tenant, today())
        return 0 if found is None else found["tokens"]


def waits(error: BaseException) -> bool:
    """Returns whether what was to be kept can be later: the disk is full, or the database does not answer."""
    return is_full(error) or isinstance(error, Unreachable)


def today() -> str:
    """Returns the day, UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def told(value: Mapping[str, Any] | None) -> str | None:
    """Returns JSON of what a client told, None of nothing."""
    return None if value is None else json.dumps(value)


def untold(text: str | None) -> Any:
    """Returns what `told` wrote."""
    return None if text is None else json.loads(text)
