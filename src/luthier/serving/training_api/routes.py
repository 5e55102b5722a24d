"""The routes of the training API, below /api/v1."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi import Request as Call
from fastapi.responses import JSONResponse, Response

from luthier.serving.http.bodies import parsed
from luthier.serving.http.refusal import Refusal
from luthier.serving.training_api import bodies
from luthier.serving.training_api.asks import JSON, PROTOBUF
from luthier.serving.training_api.bodies import Body
from luthier.serving.training_api.checkpoints import listed
from luthier.serving.training_api.service import LARGEST_BODY, TrainingService
from luthier.serving.training_api.store import DONE, WAITING, Row, untold
from luthier.serving.training_api.tenants import Tenant
from luthier.serving.training_api.told import as_json

PREFIX = "/api/v1"
HOLD = 20.0
"""Seconds that a poll is held: the official client asks again after any answer at once, and waits for 45."""
REFUSED = {
    "billing/usage/events": "this server bills nobody",
    "billing/usage/checkpoints/current": "this server bills nobody",
    "audit": "this server keeps no audit log; see its own log",
    "auth/token": "keys are not exchanged here; send the key itself",
    "auth/apikey/me": "keys are set where the server is started",
    "copy_weights": "checkpoints are not copied between projects, of which there are none",
    "save_weights_external": "a checkpoint here is a Luthier adapter; `luthier export` writes other formats",
    "create_custom_loss": "losses are not run by their graph here; forward_backward_custom runs them on your side",
    "sessions/search": "sessions are listed, not searched; see GET sessions",
}
"""What the official client knows and this server does not do, and why."""
B = TypeVar("B", bound=Body)


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


def training_routes(service: TrainingService) -> APIRouter:
    """Returns the routes of a service."""
    routes, waiting = APIRouter(prefix=PREFIX), Waiting()
    service.over = waiting.tell
    for add in (_about, _sessions, _models, _samples, _listings, _checkpoints, _refusals):
        add(routes, service)
    _futures(routes, service, waiting)
    return routes


# --- who asks, and what ---


def tenant_of(service: TrainingService, call: Call) -> Tenant:
    """Returns whose key a call brings; raises 401."""
    kind, _, bearer = call.headers.get("authorization", "").partition(" ")
    key = call.headers.get("x-api-key") or (bearer.strip() if kind.lower() == "bearer" else None)
    found = service.tenants.of(key)
    if found is None:
        raise Refusal(401, "this server needs a key, as the header `x-api-key`.", code="invalid_api_key")
    return found


async def raw_of(call: Call) -> bytes:
    """Returns the body of a call, unpacked."""
    raw = await call.body()
    packing = call.headers.get("content-encoding", "identity")
    if packing == "identity":
        return raw
    if packing != "zstd":
        raise Refusal(415, f"Content-Encoding is {packing!r:.40}; expected zstd, or none.")
    return await asyncio.to_thread(_unpacked, raw)


def _unpacked(raw: bytes) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise Refusal(415, "bodies packed with zstd need zstandard: pip install 'luthier[train-api]'") from error
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(raw) as reader:
            found = reader.read(LARGEST_BODY + 1)
    except zstandard.ZstdError as error:
        raise Refusal(400, f"the body is not zstd: {error}.") from None
    if len(found) > LARGEST_BODY:
        raise Refusal(413, f"the body is longer than {LARGEST_BODY:,} bytes.", code="body_too_large")
    return found


async def asked(call: Call, kind: type[B]) -> tuple[bytes, B]:
    """Returns a JSON body as it came, and read."""
    raw = await raw_of(call)
    return raw, await asyncio.to_thread(parsed, raw, kind)


def future(request_id: str, **more: Any) -> JSONResponse:
    """Returns the promise of a result."""
    return JSONResponse({"request_id": request_id, **more})


# --- routes ---


def _about(routes: APIRouter, service: TrainingService) -> None:
    """What the server is, and how clients should talk to it."""

    @routes.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/get_server_capabilities")
    async def capabilities(call: Call) -> dict[str, Any]:
        tenant_of(service, call)
        return service.capabilities()

    @routes.post("/client/config")
    async def config(call: Call) -> dict[str, Any]:
        tenant_of(service, call)
        await asked(call, bodies.ClientBody)
        return {"parallel_fwdbwd_chunks": True, "proto_compress_fwdbwd": False, "fwdbwd_max_chunk_bytes_count": 5_000_000,
                "sample_max_concurrent_requests": service.engine.places, "sample_use_retrieve_futures": True,
                "sample_join_sampling_session": True, "custom_loss_server_side": False}  # fmt: skip

    @routes.post("/client/dynamic_config")
    async def dynamic(call: Call) -> dict[str, Any]:
        tenant_of(service, call)
        await asked(call, bodies.ClientBody)
        return {"sample_cancel_enabled": True}

    @routes.post("/telemetry")
    async def telemetry(call: Call) -> dict[str, str]:
        tenant_of(service, call)
        await raw_of(call)  # taken, and dropped: nothing is kept of it
        return {"status": "accepted"}


def _sessions(routes: APIRouter, service: TrainingService) -> None:
    @routes.post("/create_session")
    async def create(call: Call) -> dict[str, str]:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.SessionBody)
        made = await asyncio.to_thread(service.open_session, tenant, body)
        return {"type": "create_session", "session_id": made}

    @routes.post("/session_heartbeat")
    async def heartbeat(call: Call) -> dict[str, str]:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.HeartbeatBody)
        await asyncio.to_thread(service.see, tenant, body.session_id)
        return {"type": "session_heartbeat"}

    @routes.post("/sessions/{session}/finish")
    async def finish(call: Call, session: str) -> Response:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.FinishBody)
        service.session(tenant, session)
        service.store.change("sessions", session, finished=body.model_dump_json())
        return Response(status_code=204)


def _models(routes: APIRouter, service: TrainingService) -> None:
    """What changes models: accepted, kept, and done in order."""

    @routes.post("/create_model")
    async def create(call: Call) -> JSONResponse:
        tenant = tenant_of(service, call)
        raw, body = await asked(call, bodies.ModelBody)
        return future(await asyncio.to_thread(service.create_model, tenant, raw, body))

    @routes.post("/load_weights")
    async def load(call: Call) -> JSONResponse:
        tenant = tenant_of(service, call)
        raw, body = await asked(call, bodies.LoadBody)
        return future(await asyncio.to_thread(service.load_model, tenant, raw, body))

    @routes.post("/unload_model")
    async def unload(call: Call) -> JSONResponse:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.NamedBody)
        return future(await asyncio.to_thread(service.unload, tenant, body.model_id))

    @routes.post("/get_info")
    async def info(call: Call) -> dict[str, Any]:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.NamedBody)
        return service.info(tenant, body.model_id)

    async def forward(call: Call, forward_only: bool) -> JSONResponse:
        tenant, raw = tenant_of(service, call), await raw_of(call)
        media = call.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media not in (JSON, PROTOBUF):
            raise Refusal(415, f"Content-Type is {media!r:.60}; expected {PROTOBUF} or {JSON}.")
        return future(await asyncio.to_thread(service.forward_backward, tenant, raw, media, forward_only))

    @routes.post("/forward_backward")
    async def both(call: Call) -> JSONResponse:
        return await forward(call, False)

    @routes.post("/forward")
    async def one(call: Call) -> JSONResponse:
        return await forward(call, True)

    def ordered(path: str, kind: type[Body]) -> None:
        @routes.post(f"/{path}")
        async def take(call: Call) -> JSONResponse:
            tenant, raw = tenant_of(service, call), await raw_of(call)
            given = await asyncio.to_thread(parsed, raw, bodies.NumberedBody)

            def check() -> int:
                parsed(raw, kind)
                return 0

            return future(
                await asyncio.to_thread(
                    service.ordered, tenant, path, given.model_id, given.seq_id, raw, check=check
                )
            )

    ordered("optim_step", bodies.StepBody)
    ordered("save_weights", bodies.SaveBody)
    ordered("save_weights_for_sampler", bodies.SaveSamplerBody)


def _samples(routes: APIRouter, service: TrainingService) -> None:
    @routes.post("/create_sampling_session")
    async def create(call: Call) -> dict[str, str]:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.SamplingSessionBody)
        made = await asyncio.to_thread(service.open_sampler, tenant, body)
        return {"type": "create_sampling_session", "sampling_session_id": made}

    @routes.post("/join_sampling_session")
    async def join(call: Call) -> dict[str, Any]:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.JoinBody)
        return {"type": "join_sampling_session", "client_counter": service.join(tenant, body.sampling_session_id)}

    @routes.post("/asample")
    async def sample(call: Call) -> JSONResponse:
        tenant = tenant_of(service, call)
        raw, body = await asked(call, bodies.SampleBody)
        made, sequences = await asyncio.to_thread(service.sample, tenant, raw, body)
        return future(made, sample_sequence_ids=sequences)

    @routes.get("/samplers/{sampler}")
    async def one(call: Call, sampler: str) -> dict[str, Any]:
        row = service.sampler(tenant_of(service, call), sampler)
        return {"sampler_id": sampler, "base_model": row["base"].partition("?")[0], "model_path": row["path"]}


def _futures(routes: APIRouter, service: TrainingService, waiting: Waiting) -> None:
    """Results, as soon as they are there."""

    @routes.post("/retrieve_future")
    async def retrieve(call: Call) -> Response:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.FutureBody)

        def found() -> Row | None:
            row = service.future(tenant, body.request_id)
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
            got = service.completions(tenant, target.sampling_session_id, target.cloned_sampler_id, body.prev_cursor)
            return got if got[0] or service.draining else None

        seconds = HOLD if body.timeout is None else min(HOLD, body.timeout)
        got = await waiting.until(target.sampling_session_id, found, seconds)
        completions, cursor = got or ([], body.prev_cursor)
        return {"completions": completions, "cursor": cursor}

    @routes.post("/cancel_future")
    async def cancel(call: Call) -> Response:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.CancelBody)
        await asyncio.to_thread(service.cancel, tenant, body.request_id)
        return Response(status_code=204)


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


def _page(call: Call, most: int) -> tuple[int, int]:
    """The limit and offset of a listing; scopes beyond one's own are the same here."""
    try:
        limit, offset = (int(call.query_params.get(key, default)) for key, default in (("limit", most), ("offset", 0)))
    except ValueError:
        raise Refusal(400, "limit and offset: expected whole numbers.") from None
    if not (1 <= limit <= 1000 and offset >= 0):
        raise Refusal(400, f"limit is {limit} and offset {offset}; expected 1 to 1000, and 0 or more.")
    return limit, offset


def _listings(routes: APIRouter, service: TrainingService) -> None:
    @routes.get("/sessions")
    async def sessions(call: Call) -> dict[str, Any]:
        tenant, (limit, offset) = tenant_of(service, call), _page(call, 20)
        query = "SELECT id FROM sessions WHERE tenant = ? ORDER BY created DESC LIMIT ? OFFSET ?"
        return {"sessions": [row["id"] for row in service.store.rows(query, tenant.name, limit, offset)]}

    @routes.get("/sessions/{session}")
    async def session(call: Call, session: str) -> dict[str, Any]:
        row = service.session(tenant_of(service, call), session)
        ids = [[each["id"] for each in service.store.rows(f"SELECT id FROM {table} WHERE session = ?", session)]
               for table in ("models", "samplers")]  # fmt: skip
        said = untold(row["told"])
        return {"training_run_ids": ids[0], "sampler_ids": ids[1], "user_metadata": said["user_metadata"],
                "display_name": said["display_name"]}  # fmt: skip

    @routes.get("/training_runs")
    async def runs(call: Call) -> dict[str, Any]:
        tenant, (limit, offset) = tenant_of(service, call), _page(call, 20)
        every = service.store.rows("SELECT * FROM models WHERE tenant = ? ORDER BY created DESC", tenant.name)
        cursor = {"offset": offset, "limit": limit, "total_count": len(every)}
        return {"training_runs": [service.run(row) for row in every[offset : offset + limit]], "cursor": cursor}

    @routes.get("/training_runs/{run}")
    async def run(call: Call, run: str) -> dict[str, Any]:
        return service.run(service.model(tenant_of(service, call), run))

    @routes.get("/training_runs/{run}/checkpoints")
    async def checkpoints(call: Call, run: str) -> dict[str, Any]:
        tenant = tenant_of(service, call)
        service.model(tenant, run)
        query = "SELECT * FROM checkpoints WHERE run = ? AND tenant = ? AND NOT hidden ORDER BY created DESC"
        return {"checkpoints": [listed(row) for row in service.store.rows(query, run, tenant.name)]}

    @routes.get("/checkpoints")
    async def all_checkpoints(call: Call) -> dict[str, Any]:
        tenant, (limit, offset) = tenant_of(service, call), _page(call, 100)
        query = "SELECT * FROM checkpoints WHERE tenant = ? AND NOT hidden ORDER BY created DESC"
        every = service.store.rows(query, tenant.name)
        cursor = {"offset": offset, "limit": limit, "total_count": len(every)}
        return {"checkpoints": [listed(row) for row in every[offset : offset + limit]], "cursor": cursor}


def _checkpoints(routes: APIRouter, service: TrainingService) -> None:
    @routes.post("/weights_info")
    async def info(call: Call) -> dict[str, Any]:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.PathBody)
        return service.weights_info(tenant, body.tinker_path)

    @routes.put("/training_runs/{run}/checkpoints/{kind}/{name}/ttl")
    async def ttl(call: Call, run: str, kind: str, name: str) -> Response:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.TimeToLiveBody)
        await asyncio.to_thread(service.keep, tenant, run, kind, name, body.ttl_seconds)
        return Response(status_code=204)

    @routes.delete("/training_runs/{run}/checkpoints/{kind}/{name}")
    async def delete(call: Call, run: str, kind: str, name: str) -> Response:
        tenant = tenant_of(service, call)
        await asyncio.to_thread(service.forget, tenant, run, kind, name)
        return Response(status_code=204)


def _refusals(routes: APIRouter, service: TrainingService) -> None:
    """What is refused by name, so that nobody looks for a fault of their own."""

    def refused(path: str, why: str) -> None:
        @routes.api_route(f"/{path}", methods=["GET", "POST", "DELETE", "PUT"])
        async def refuse(call: Call) -> None:
            tenant_of(service, call)
            raise Refusal(400, f"{path} is refused: {why}.", code="unsupported")

    for path, why in REFUSED.items():
        refused(path, why)
    refused("sessions/{session}/project", "there are no projects here")
    refused("sessions/{session}/trace_export", "no traces are kept here")
    refused("training_runs/{run}/checkpoints/{kind}/{name}/publish", "checkpoints are their tenant's alone")
    refused("training_runs/{run}/checkpoints/{kind}/{name}/external_weights_urls", "no other formats are written here")
