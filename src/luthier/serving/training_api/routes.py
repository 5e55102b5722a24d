"""The routes of the training API, below /api/v1."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Call
from fastapi.responses import JSONResponse, Response

from luthier.serving.http.bodies import parsed
from luthier.serving.http.refusal import Refusal
from luthier.serving.training_api import bodies
from luthier.serving.training_api.asks import JSON, PROTOBUF
from luthier.serving.training_api.bodies import Body
from luthier.serving.training_api.calls import asked, future, raw_of, tenant_of
from luthier.serving.training_api.futures import Waiting, add_futures
from luthier.serving.training_api.listings import add_checkpoints, add_listings, add_refusals
from luthier.serving.training_api.service import TrainingService

PREFIX = "/api/v1"


def training_routes(service: TrainingService) -> APIRouter:
    """Returns the routes of a service."""
    routes, waiting = APIRouter(prefix=PREFIX), Waiting()
    service.over = waiting.tell
    for add in (_about, _sessions, _models, _samples, add_listings, add_checkpoints, add_refusals):
        add(routes, service)
    add_futures(routes, service, waiting)
    return routes


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
        return {"parallel_fwdbwd_chunks": True, "proto_compress_fwdbwd": False,
                "fwdbwd_max_chunk_bytes_count": 5_000_000,
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
                await asyncio.to_thread(service.ordered, tenant, path, given.model_id, given.seq_id, raw, check=check)
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
