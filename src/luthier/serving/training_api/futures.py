"""Futures: polls that are held until a result is there."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Call
from fastapi.responses import JSONResponse, Response

from luthier.serving.http.refusal import Refusal
from luthier.serving.training_api import bodies
from luthier.serving.training_api.asks import JSON, PROTOBUF
from luthier.serving.training_api.calls import asked, takes, tenant_of
from luthier.serving.training_api.service import TrainingService
from luthier.serving.training_api.store import DONE, WAITING, Row
from luthier.serving.training_api.told import as_json

HOLD = 20.0
"""Seconds that a poll is held: the official client asks again after any answer at once, and waits for 45."""


class Waiting:
    """Polls that wait for a request to be over; the event loop uses it, `tell` is for any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    def tell(self, request_id: str) -> None:
        """Wakes those who wait for a request, or for any of its owner."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, request_id)

    def _wake(self, request_id: str) -> None:
        for key in (request_id, request_id.rpartition(":")[0]):
            for event in self._waiting.get(key, ()):
                event.set()

    async def until(self, key: str, found: Any, seconds: float) -> Any:
        """Returns what `found()` gives once it gives something, or None after so many seconds."""
        self._loop = asyncio.get_running_loop()
        event, end = asyncio.Event(), self._loop.time() + seconds
        self._waiting[key].add(event)
        try:
            while (what := await asyncio.to_thread(found)) is None and (left := end - self._loop.time()) > 0:
                try:
                    await asyncio.wait_for(event.wait(), left)
                except asyncio.TimeoutError:
                    continue
                event.clear()
            return what
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]


def add_futures(routes: APIRouter, service: TrainingService, waiting: Waiting) -> None:
    """Results, as soon as they are there."""

    @routes.post("/retrieve_future")
    async def retrieve(call: Call) -> Response:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.FutureBody)

        def found() -> Row | None:
            row = service.owned.future(tenant, body.request_id)
            return row if row["state"] != WAITING or service.draining else None

        row = await waiting.until(body.request_id, found, HOLD)
        if row is None or row["state"] == WAITING:
            return JSONResponse({"type": "try_again", "request_id": body.request_id, "queue_state": "active"})
        return result_of(row, PROTOBUF in call.headers.get("accept", ""))

    @routes.post("/retrieve_futures")
    async def several(call: Call) -> dict[str, Any]:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.FuturesBody)
        target = body.target

        def found() -> Any:
            got = service.shelf.completions(
                tenant, target.sampling_session_id, target.cloned_sampler_id, body.prev_cursor
            )
            return got if got[0] or service.draining else None

        seconds = HOLD if body.timeout is None else min(HOLD, body.timeout)
        got = await waiting.until(target.sampling_session_id, found, seconds)
        completions, cursor = got or ([], body.prev_cursor)
        return {"completions": completions, "cursor": cursor}

    cancelled = lambda own: service.cancel(own.tenant, own.body.request_id)  # noqa: E731
    takes(routes, service, "/cancel_future", bodies.CancelBody, cancelled, lambda _: Response(status_code=204))


def result_of(row: Row, protobuf: bool) -> Response:
    """Returns what came of a request: passes and samples as protobuf where that is accepted, anything else as JSON."""
    if row["state"] != DONE:
        return JSONResponse({"error": row["error"], "category": row["category"] or "user"})
    if row["result"] is None:
        raise Refusal(410, f"the result of {row['id']} was kept for its time, and is gone.", code="gone")
    if row["kind"] not in ("forward_backward", "sample"):
        return Response(row["result"], media_type=JSON)
    if protobuf:
        return Response(row["result"], media_type=PROTOBUF)
    return Response(json.dumps(as_json(row["kind"], row["result"])), media_type=JSON)
