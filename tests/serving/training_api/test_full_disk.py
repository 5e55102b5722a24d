"""The training API on a full disk: what cannot be kept is not done, and all goes on by itself when there is space."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from functools import partial

import pytest
import safetensors
from safetensors.torch import load_file

from luthier.core.errors import LuthierError
from luthier.serving.training_api.store import Store
from serving.training_api.conftest import running
from support.train_client import row

ROWS = [row(9, 0), row(5, 3), row(12, 8)]


class Disk:
    """Is full while a test says so: the store's changes then fail as SQLite's do, saves of tensors as safetensors'."""

    def __init__(self, monkeypatch, store: Store, pool) -> None:
        self.full, self.met = False, threading.Event()
        finish, save = store.finish, pool.save

        def finished(*given, **named) -> None:
            self._may(sqlite3.OperationalError("database or disk is full"))
            finish(*given, **named)

        def saved(*given, **named):
            self._may(safetensors.SafetensorError("I/O error: No space left on device (os error 28)"))
            return save(*given, **named)

        monkeypatch.setattr(store, "finish", finished)
        monkeypatch.setattr(pool, "save", saved)

    def _may(self, error: Exception) -> None:
        if self.full:
            self.met.set()
            raise error

    def fills_during(self, send):
        """What `send` gives, whose work meets the full disk before there is space."""
        self.met.clear()
        self.full = True
        sent = send()
        assert self.met.wait(10)
        time.sleep(0.1)
        self.full = False
        return sent


def trained(own, disk: Disk | None) -> tuple[list[float], dict]:
    """Losses of three steps and the result of saving; each request meets a full `disk` where there is one."""
    model, losses = own.create(own.session(), "tiny", seed=5), []
    meets = disk.fills_during if disk else lambda send: send()
    for step, batch in enumerate(([ROWS[0], ROWS[1]], [ROWS[2]], [ROWS[1]])):
        sent = meets(partial(own.submit, model, 2 * step + 1, batch))
        losses.append(own.result(sent.json(), "ForwardBackwardOutput")["metrics"]["loss:sum"])
        own.result(meets(partial(own.step, model, 2 * step + 2)))
    told = own.result(meets(partial(own.post, "save_weights", model_id=model, seq_id=7, path="end")))
    return losses, told


def test_nothing_is_done_twice_and_all_goes_on(base, tmp_path, monkeypatch, caplog):
    with running(base, tmp_path / "kept") as server, caplog.at_level(logging.ERROR):
        plain, _ = trained(server.client, None)
        training = server.training
        training.trainer.snapshot_seconds = 0.0  # so that snapshots meet it too
        losses, told = trained(server.client, Disk(monkeypatch, training.store, training.trainer.pool))
        assert losses == plain
        assert "path" in told, told
    files = sorted((tmp_path / "kept" / "checkpoints").rglob("adapter.safetensors"))
    first, second = (load_file(each) for each in files)
    assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)
    assert caplog.records and all("is full" in each.message and each.exc_info is None for each in caplog.records)


def test_a_request_that_cannot_be_kept_is_503_and_may_come_again(base, tmp_path):
    with running(base, tmp_path / "kept") as server:
        own = server.client
        model = own.create(own.session(), "tiny")
        db = server.training.store._db
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        got = own.submit(model, 1, ROWS * 40)
        assert got.status_code == 503 and "disk is full" in got.text and got.headers["retry-after"]
        db.execute("PRAGMA max_page_count = 1000000")
        got = own.submit(model, 1, ROWS * 40)
        assert got.status_code == 200 and "metrics" in own.result(got.json(), "ForwardBackwardOutput")


def test_samples_wait_for_space_and_are_drawn_once(base, tmp_path, monkeypatch):
    with running(base, tmp_path / "kept") as server:
        own, training, begun = server.client, server.training, []
        begin, session = training.scheduler._begin, own.session()
        opened = own.post("create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny")
        body = {"sampling_session_id": opened["sampling_session_id"], "sampling_params": {"max_tokens": 2, "seed": 1},
                "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}, "num_samples": 1}  # fmt: skip

        def at_first_full(request) -> None:
            begun.append(request["id"])
            if len(begun) == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            begin(request)

        monkeypatch.setattr(training.scheduler, "_begin", at_first_full)
        assert own.result(own.post("asample", seq_id=0, **body), "SampleResponse")["sequences"]
        assert len(begun) == 2
        disk = Disk(monkeypatch, training.store, training.trainer.pool)
        sent = disk.fills_during(lambda: own.post("asample", seq_id=1, **body))
        assert own.result(sent, "SampleResponse")["sequences"]
        assert len(begun) == 3


def test_a_database_without_room_is_told(tmp_path, monkeypatch):
    class Full(sqlite3.Connection):
        def executescript(self, script: str, /):
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", lambda *given, **named: Full(given[0]))
    with pytest.raises(LuthierError, match="cannot be used as the training API's database"):
        Store(tmp_path / "kept.sqlite")
