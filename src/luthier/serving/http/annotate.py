"""The page of `luthier annotate --serve`: one row after another, its label on disk before the next is shown."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi import Request as Call
from prometheus_client import CollectorRegistry, Counter
from pydantic import BaseModel, ConfigDict

from luthier.core.errors import LuthierError
from luthier.data.annotate import Annotation
from luthier.serving.http import refusal
from luthier.serving.http.bodies import asked
from luthier.serving.http.guard import Guard, Guarded
from luthier.serving.http.listening import Listening, add_page
from luthier.serving.http.refusal import Refusal


class Said(BaseModel):
    """What a person says of a row; without a label, that it is skipped."""

    model_config = ConfigDict(extra="forbid", strict=True)

    row: int
    label: str | None = None


class Desk:
    """A sitting that several calls may use: one row is asked at a time, and a label is for the row that was shown."""

    def __init__(self, session: Annotation) -> None:
        self.session = session
        self.place: int | None = None
        self.lock = threading.Lock()

    def shown(self) -> dict[str, Any]:
        """Returns the row to label and what has been done; no row when the budget is spent."""
        with self.lock:
            return self._shown()

    def say(self, said: Said) -> dict[str, Any]:
        """Keeps a label, or skips the row; returns the next. Raises `Refusal` for another row than the shown one."""
        with self.lock:
            rows = self.session.pool.examples.rows
            if self.place is None or rows[self.place].row != said.row:
                raise Refusal(409, f"row {said.row} is not the one that is asked for; read it anew.", code="other_row")
            if said.label is None:
                self.session.skip(self.place)
            else:
                self.session.label(self.place, said.label)
            self.place = None
            return self._shown()

    def _shown(self) -> dict[str, Any]:
        session = self.session
        if self.place is None:
            self.place = session.next()
        told = session.told() | {"budget": session.budget, "choices": list(session.classes), "row": None, "text": None}
        if self.place is None:
            return told
        return told | {"row": session.pool.examples.rows[self.place].row, "text": session.text(self.place)}


def create_app(session: Annotation, guard: Guard) -> FastAPI:
    """Returns the app of a sitting."""
    app, desk = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False), Desk(session)
    add_page(app, {"/": "annotate.html", "/page.js": "annotate.js"})

    @app.get("/row")
    async def row() -> dict[str, Any]:
        return await asyncio.to_thread(desk.shown)  # a first question may take a policy's training

    @app.post("/label")
    async def label(call: Call) -> dict[str, Any]:
        said = await asked(call, Said)
        return await asyncio.to_thread(desk.say, said)

    refusal.install(app)
    requests = Counter("annotate_requests", "Answers by code", ("method", "path", "code"), registry=CollectorRegistry())
    app.add_middleware(Guarded, guard=guard, requests=requests)
    return app


def serve(session: Annotation, guard: Guard, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serves a sitting on a bound socket until a signal ends it."""
    try:
        server = Listening(create_app(session, guard), ready, connections=32, patience=30.0, last_words=2)
        asyncio.run(server.serve(sockets=[bound]))
    except OSError as error:
        raise LuthierError(f"the page cannot be served ({error.strerror}).") from error
