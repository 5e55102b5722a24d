"""The training API over a Postgres server, whose URL is $LUTHIER_TEST_POSTGRES (an empty database of its own).

pip install 'psycopg[binary]'
LUTHIER_TEST_POSTGRES=postgresql://luthier@127.0.0.1:5455/test pytest tests/serving/training_api/test_postgres.py
"""

from __future__ import annotations

import os

import pytest

from luthier.core.errors import LuthierError
from luthier.core.guard import is_full
from luthier.serving.training_api import database
from luthier.serving.training_api.database import SCHEMA, Postgres, Unreachable
from luthier.serving.training_api.store import Store
from serving.training_api.conftest import running
from support.train_client import row

URL = os.environ.get("LUTHIER_TEST_POSTGRES", "")
ROWS = [row(9, 0), row(5, 3)]
served = pytest.mark.skipif(not URL, reason="no Postgres (LUTHIER_TEST_POSTGRES)")


@pytest.fixture
def empty():
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(URL, autocommit=True) as db:
        db.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


@served
def test_it_goes_on_over_restarts_and_lost_connections(empty, base, tmp_path, monkeypatch):
    """Weights are those of a server that keeps all in a file, bit for bit; every listing and refusal works."""
    with running(base, tmp_path / "file") as server:
        own = server.client
        model = own.create(own.session(), "tiny")
        wanted = []
        for step in range(3):
            wanted.append(own.passed(model, 2 * step + 1, ROWS)[1])
            own.result(own.step(model, 2 * step + 2))
    found = []
    with running(base, tmp_path / "kept", database=URL) as server:
        own = server.of("tml-one")
        session = own.session()
        model = own.create(session, "tiny")
        found.append(own.passed(model, 1, ROWS)[1])
        own.result(own.step(model, 2))
        with monkeypatch.context() as patched, pytest.raises(LuthierError, match="another server uses it"):
            patched.setattr(database, "PATIENCE", 0.0)
            Store(URL)
        server.training.store._db._db.close()  # the connection is lost
        found.append(own.passed(model, 3, ROWS)[1])
        assert "path" in own.result(own.post("save_weights", model_id=model, seq_id=4, path="a"))
        assert "path" in own.result(own.post("save_weights_for_sampler", model_id=model, seq_id=5, path="b"))
    with running(base, tmp_path / "kept", database=URL) as server:
        own = server.of("tml-one")
        own.result(own.step(model, 6))
        found.append(own.passed(model, 7, ROWS)[1])
        assert own.call("GET", "checkpoints").json()["cursor"]["total_count"] == 2
        assert own.call("GET", "training_runs").json()["cursor"]["total_count"] == 1
        assert own.call("GET", f"sessions/{session}").json()["training_run_ids"] == [model]
        assert server.of("tml-two").call("GET", f"sessions/{session}").status_code == 404
        server.training.checkpoints.sweep()
        server.training.store.forget(0.0)
        server.training.scheduler._give_up()
    assert found == wanted


@served
def test_while_it_does_not_answer_requests_wait(empty, base, tmp_path, monkeypatch):
    with running(base, tmp_path / "kept", database=URL) as server:
        own, db = server.client, server.training.store._db
        model = own.create(own.session(), "tiny")
        plain = own.passed(model, 1, ROWS)[1]
        execute, failed = db.execute, []

        def failing(query, values=()):
            if query.startswith("UPDATE requests SET state") and len(failed) < 2:
                failed.append(query)
                raise Unreachable("it does not answer")
            return execute(query, values)

        monkeypatch.setattr(db, "execute", failing)
        assert own.passed(model, 2, ROWS)[1] == plain
        assert own.result(own.step(model, 3))["metrics"]["grad_norm:mean"] > 0
        assert len(failed) == 2


def test_what_cannot_be_used_is_refused():
    with pytest.raises(LuthierError, match=r"luthier\[postgres\]|127.0.0.1:1/x cannot be used"):
        Store("postgresql://anna:secret@127.0.0.1:1/x")


def test_what_is_wrong_with_a_database_is_said_as_it_is(monkeypatch):
    """No password is shown; a full disk is one; who waits for a database that is gone is told at once."""
    psycopg = pytest.importorskip("psycopg")
    db = object.__new__(Postgres)
    db._psycopg, db._failed = psycopg, -database.REST
    db.url, db._db = "postgresql://127.0.0.1:1/x?user=anna&password=secret", Lost(psycopg.errors.DiskFull("full"))
    assert db.named == "postgresql://127.0.0.1:1/x"
    with pytest.raises(OSError, match="is full") as told:
        db.execute("SELECT 1")
    assert is_full(told.value)
    db._db.closed, tried = True, []

    def connect(**settings):
        tried.append(settings["tcp_user_timeout"])
        raise psycopg.OperationalError("refused")

    monkeypatch.setattr(psycopg, "connect", connect)
    for _ in range(3):
        with pytest.raises(Unreachable, match="does not answer"):
            db.execute("SELECT 1")
    assert len(tried) == 1


class Lost:
    closed = False

    def __init__(self, error):
        self.error = error

    def execute(self, *_):
        raise self.error
