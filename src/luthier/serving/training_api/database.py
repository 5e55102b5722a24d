"""The database of the training API: a file of SQLite, or Postgres by a URL. Both are asked in the same SQL."""

from __future__ import annotations

import errno
import importlib
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, final

from luthier.core.errors import LuthierError

VERSION = 1
"""Of the tables."""
SCHEMES = ("postgresql://", "postgres://")
SCHEMA = "luthier_training"
"""Where the tables lie in Postgres."""
LOCK = 0x6C757468
"""The number of the lock that a server holds on its database."""
PATIENCE = 5.0
"""Seconds that are waited for the lock: that of a killed server is held until Postgres finds it gone."""


REST = 1.0
"""Seconds for which a database that could not be reached is not asked again: whoever waits is told at once."""
SILENCE = {
    **{"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3},
    "tcp_user_timeout": 25_000,
}
"""When a connection that says nothing counts as lost, unless the URL says so (seconds; the last, milliseconds)."""


class Unreachable(ConnectionError):
    """The database does not answer; what was to be kept in it waits."""


class Database(ABC):
    """One connection, which one thread at a time uses."""

    begin: str
    """The statement that opens a transaction."""

    @abstractmethod
    def execute(self, query: str, values: Sequence[Any] = ()) -> Any:
        """Runs one statement, `?` standing for each value; returns a cursor whose rows are read by column names."""

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the database."""


@final
class SQLite(Database):
    """A database in one file."""

    begin = "BEGIN IMMEDIATE"

    def __init__(self, file: str | Path, tables: str) -> None:
        """Raises `LuthierError` for a file that is no such database, or of another version."""
        try:
            self._db = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
            with _closed_on_failure(self._db):
                self._make(str(file), tables)
        except sqlite3.Error as error:
            raise LuthierError(f"{file} cannot be used as the training API's database: {error}.") from error

    def _make(self, file: str, tables: str) -> None:
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if not found:
            self._db.executescript(f"BEGIN; {tables} PRAGMA user_version={VERSION}; COMMIT;")
        _refuse_other(file, found or VERSION)

    def execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._db.execute(query, values)

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def close(self) -> None:
        self._db.close()


@final
class Postgres(Database):
    """A database of a Postgres server; a lost connection is made anew."""

    begin = "BEGIN"
    types: ClassVar = {" REAL": " DOUBLE PRECISION", " INTEGER": " BIGINT", " BLOB": " BYTEA"}
    """What SQLite's types, which hold eight bytes, are called there."""

    def __init__(self, url: str, tables: str) -> None:
        """Raises `LuthierError` for a database that cannot be used, or that another server uses."""
        try:
            self._psycopg = importlib.import_module("psycopg")
        except ImportError as error:
            raise LuthierError("Postgres needs psycopg: pip install 'luthier[postgres]'") from error
        self.url, self._failed = url, -REST
        for ours, theirs in self.types.items():
            tables = tables.replace(ours, theirs)
        try:
            self._db = self._connected()
            with _closed_on_failure(self._db):
                self._make(tables)
        except (self._psycopg.Error, Unreachable) as error:
            said = " ".join(str(error).split())
            raise LuthierError(f"{self.named} cannot be used as the training API's database: {said}") from error

    @property
    def named(self) -> str:
        """The URL without user and password, which may stand in its query too."""
        return "postgresql://" + self.url.partition("://")[2].rpartition("@")[2].partition("?")[0]

    def _connected(self) -> Any:
        rows = importlib.import_module("psycopg.rows")
        told = importlib.import_module("psycopg.conninfo").conninfo_to_dict(self.url)
        told |= {"client_encoding": "utf8"}  # a database without an encoding of its own would give bytes for text
        made = self._psycopg.connect(**{**SILENCE, **told}, autocommit=True, row_factory=rows.dict_row)
        with _closed_on_failure(made):
            end = time.monotonic() + PATIENCE
            while not made.execute("SELECT pg_try_advisory_lock(%s) held", (LOCK,)).fetchone()["held"]:
                if time.monotonic() > end:
                    raise Unreachable("another server uses it; each needs a database of its own.")
                time.sleep(0.1)
            made.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            made.execute(f"SET search_path TO {SCHEMA}")
        return made

    def _again(self) -> Any:
        """A connection in the place of one that was lost. Threads that waited for one that failed do not try each."""
        if time.monotonic() - self._failed < REST:
            raise Unreachable(f"{self.named} does not answer")
        try:
            return self._connected()
        except Unreachable as error:
            self._failed = time.monotonic()
            raise Unreachable(f"{self.named}: {error}") from error
        except self._psycopg.OperationalError:
            self._failed = time.monotonic()
            raise

    def _make(self, tables: str) -> None:
        self._db.execute("BEGIN")
        self._db.execute("CREATE TABLE IF NOT EXISTS version (number BIGINT NOT NULL)")
        found = self._db.execute("SELECT number FROM version").fetchone()
        if found is None:
            self._db.execute(tables)
            self._db.execute("INSERT INTO version VALUES (%s)", (VERSION,))
        self._db.execute("COMMIT")
        _refuse_other(self.named, VERSION if found is None else found["number"])

    def execute(self, query: str, values: Sequence[Any] = ()) -> Any:
        try:
            if self._db.closed:  # whatever was open on the lost connection was rolled back by the server
                self._db = self._again()
            return self._db.execute(query.replace("?", "%s"), values)
        except self._psycopg.errors.DiskFull as error:
            raise OSError(errno.ENOSPC, f"the disk of {self.named} is full") from error
        except self._psycopg.OperationalError as error:
            if not self._db.closed:
                raise
            raise Unreachable(f"{self.named} does not answer ({' '.join(str(error).split())})") from error

    @property
    def in_transaction(self) -> bool:
        return self._db.info.transaction_status != self._psycopg.pq.TransactionStatus.IDLE and not self._db.closed

    def close(self) -> None:
        self._db.close()


def opened(where: str | Path, tables: str) -> Database:
    """Returns the database at a URL of Postgres, or in a file of SQLite, with its tables."""
    if str(where).startswith(SCHEMES):
        return Postgres(str(where), tables)
    return SQLite(where, tables)


@contextmanager
def _closed_on_failure(db: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        db.close()
        raise


def _refuse_other(where: str, version: int) -> None:
    if version != VERSION:
        raise LuthierError(f"{where} is of version {version}, and this Luthier writes version {VERSION}.")
