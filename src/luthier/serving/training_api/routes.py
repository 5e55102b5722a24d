"""The routes of the training API, below /api/v1."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi import Request as Call
from fastapi.responses import JSONResponse, Response

from luthier.serving.http.bodies import parsed
from luthier.serving.http.refusal import RETRY, Refusal
from luthier.serving.training_api import bodies
from luthier.serving.training_api.asks import JSON, PROTOBUF
from luthier.serving.training_api.bodies import Body
from luthier.serving.training_api.calls import Asked, asked, future, raw_of, takes, tenant_of
from luthier.serving.training_api.database import Unreachable
from luthier.serving.training_api.futures import Waiting, add_futures
from luthier.serving.training_api.listings import add_checkpoints, add_listings, add_refusals
from luthier.serving.training_api.service import TrainingService

PREFIX = "/api/v1"


def install(app: FastAPI, service: TrainingService) -> None:
    """Adds the routes of a service, and what is said while its database does not answer."""
    app.include_router(_training_routes(service))

    @app.exception_handler(Unreachable)
    async def unreachable(request: Call, error: Unreachable) -> JSONResponse:
        return Refusal(503, "the server's database does not answer; try again.", headers=RETRY).response()


def _training_routes(service: TrainingService) -> APIRouter:
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
        return service.shelf.capabilities()

    config = {"parallel_fwdbwd_chunks": True, "proto_compress_fwdbwd": False,
              "fwdbwd_max_chunk_bytes_count": 5_000_000, "sample_max_concurrent_requests": service.engine.places,
              "sample_use_retrieve_futures": True, "sample_join_sampling_session": True,
              "custom_loss_server_side": False}  # fmt: skip
    takes(routes, service, "/client/config", bodies.ClientBody, lambda own: config)
    takes(routes, service, "/client/dynamic_config", bodies.ClientBody, lambda own: {"sample_cancel_enabled": True})

    @routes.post("/telemetry")
    async def telemetry(call: Call) -> dict[str, str]:
        tenant_of(service, call)
        await raw_of(call)  # taken, and dropped: nothing is kept of it
        return {"status": "accepted"}


def _sessions(routes: APIRouter, service: TrainingService) -> None:
    def create(own: Asked[bodies.SessionBody]) -> dict[str, str]:
        return {"type": "create_session", "session_id": service.open_session(own.tenant, own.body)}

    def heartbeat(own: Asked[bodies.HeartbeatBody]) -> dict[str, str]:
        service.see(own.tenant, own.body.session_id)
        return {"type": "session_heartbeat"}

    takes(routes, service, "/create_session", bodies.SessionBody, create)
    takes(routes, service, "/session_heartbeat", bodies.HeartbeatBody, heartbeat)

    @routes.post("/sessions/{session}/finish")
    async def finish(call: Call, session: str) -> Response:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.FinishBody)
        await asyncio.to_thread(service.owned.session, tenant, session)
        await asyncio.to_thread(service.store.change, "sessions", session, finished=body.model_dump_json())
        return Response(status_code=204)


def _models(routes: APIRouter, service: TrainingService) -> None:
    """What changes models: accepted, kept, and done in order."""
    created = lambda own: service.create_model(own.tenant, own.raw, own.body)  # noqa: E731
    loaded = lambda own: service.load_model(own.tenant, own.raw, own.body)  # noqa: E731
    unloaded = lambda own: service.unload(own.tenant, own.body.model_id)  # noqa: E731
    takes(routes, service, "/create_model", bodies.ModelBody, created, future)
    takes(routes, service, "/load_weights", bodies.LoadBody, loaded, future)
    takes(routes, service, "/unload_model", bodies.NamedBody, unloaded, future)
    takes(routes, service, "/get_info", bodies.NamedBody, lambda own: service.shelf.info(own.tenant, own.body.model_id))

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
        def take(own: Asked[bodies.NumberedBody]) -> str:
            """A body that is wrong beside its number: that number is refused, and not waited for."""

            def check() -> int:
                parsed(own.raw, kind)
                return 0

            return service.ordered(own.tenant, path, own.body.model_id, own.body.seq_id, own.raw, check=check)

        takes(routes, service, f"/{path}", bodies.NumberedBody, take, future)

    ordered("optim_step", bodies.StepBody)
    ordered("save_weights", bodies.SaveBody)
    ordered("save_weights_for_sampler", bodies.SaveSamplerBody)


def _samples(routes: APIRouter, service: TrainingService) -> None:
    def create(own: Asked[bodies.SamplingSessionBody]) -> dict[str, str]:
        return {"type": "create_sampling_session", "sampling_session_id": service.open_sampler(own.tenant, own.body)}

    def join(own: Asked[bodies.JoinBody]) -> dict[str, Any]:
        number = service.join(own.tenant, own.body.sampling_session_id)
        return {"type": "join_sampling_session", "client_counter": number}

    def sample(own: Asked[bodies.SampleBody]) -> JSONResponse:
        made, sequences = service.sample(own.tenant, own.raw, own.body)
        return future(made, sample_sequence_ids=sequences)

    takes(routes, service, "/create_sampling_session", bodies.SamplingSessionBody, create)
    takes(routes, service, "/join_sampling_session", bodies.JoinBody, join)
    takes(routes, service, "/asample", bodies.SampleBody, sample)

    @routes.get("/samplers/{sampler}")
    def one(call: Call, sampler: str) -> dict[str, Any]:
        row = service.owned.sampler(tenant_of(service, call), sampler)
        return {"sampler_id": sampler, "base_model": row["base"].partition("?")[0], "model_path": row["path"]}
