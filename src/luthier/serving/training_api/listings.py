"""Routes that list what there is, that keep or delete checkpoints, and that are refused by name."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Call
from fastapi.responses import Response

from luthier.serving.http.refusal import Refusal
from luthier.serving.training_api import bodies
from luthier.serving.training_api.bodies import LARGEST
from luthier.serving.training_api.calls import asked, takes, tenant_of
from luthier.serving.training_api.checkpoints import listed
from luthier.serving.training_api.service import TrainingService
from luthier.serving.training_api.store import untold

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


def _page(call: Call, most: int) -> tuple[int, int]:
    """The limit and offset of a listing; scopes beyond one's own are the same here."""
    try:
        limit, offset = (int(call.query_params.get(key, default)) for key, default in (("limit", most), ("offset", 0)))
    except ValueError:
        raise Refusal(400, "limit and offset: expected whole numbers.") from None
    if not (1 <= limit <= 1000 and 0 <= offset <= LARGEST):
        raise Refusal(400, f"limit is {limit} and offset {offset}; expected 1 to 1000, and 0 or more.")
    return limit, offset


def add_listings(routes: APIRouter, service: TrainingService) -> None:
    """What there is. None of these is async: each waits for the database, in a thread of its own."""

    @routes.get("/sessions")
    def sessions(call: Call) -> dict[str, Any]:
        tenant, (limit, offset) = tenant_of(service, call), _page(call, 20)
        query = "SELECT id FROM sessions WHERE tenant = ? ORDER BY created DESC LIMIT ? OFFSET ?"
        return {"sessions": [row["id"] for row in service.store.rows(query, tenant.name, limit, offset)]}

    @routes.get("/sessions/{session}")
    def session(call: Call, session: str) -> dict[str, Any]:
        row = service.owned.session(tenant_of(service, call), session)
        ids = [[each["id"] for each in service.store.rows(f"SELECT id FROM {table} WHERE session = ?", session)]
               for table in ("models", "samplers")]  # fmt: skip
        said = untold(row["told"])
        return {"training_run_ids": ids[0], "sampler_ids": ids[1], "user_metadata": said["user_metadata"],
                "display_name": said["display_name"]}  # fmt: skip

    @routes.get("/training_runs")
    def runs(call: Call) -> dict[str, Any]:
        tenant, (limit, offset) = tenant_of(service, call), _page(call, 20)
        every = service.store.rows("SELECT * FROM models WHERE tenant = ? ORDER BY created DESC", tenant.name)
        cursor = {"offset": offset, "limit": limit, "total_count": len(every)}
        return {"training_runs": [service.shelf.run(row) for row in every[offset : offset + limit]], "cursor": cursor}

    @routes.get("/training_runs/{run}")
    def run(call: Call, run: str) -> dict[str, Any]:
        return service.shelf.run(service.owned.model(tenant_of(service, call), run))

    @routes.get("/training_runs/{run}/checkpoints")
    def checkpoints(call: Call, run: str) -> dict[str, Any]:
        tenant = tenant_of(service, call)
        service.owned.model(tenant, run)
        query = "SELECT * FROM checkpoints WHERE run = ? AND tenant = ? AND hidden = 0 ORDER BY created DESC"
        return {"checkpoints": [listed(row) for row in service.store.rows(query, run, tenant.name)]}

    @routes.get("/checkpoints")
    def all_checkpoints(call: Call) -> dict[str, Any]:
        tenant, (limit, offset) = tenant_of(service, call), _page(call, 100)
        query = "SELECT * FROM checkpoints WHERE tenant = ? AND hidden = 0 ORDER BY created DESC"
        every = service.store.rows(query, tenant.name)
        cursor = {"offset": offset, "limit": limit, "total_count": len(every)}
        return {"checkpoints": [listed(row) for row in every[offset : offset + limit]], "cursor": cursor}


def add_checkpoints(routes: APIRouter, service: TrainingService) -> None:
    told = lambda own: service.shelf.weights_info(own.tenant, own.body.tinker_path)  # noqa: E731
    takes(routes, service, "/weights_info", bodies.PathBody, told)

    @routes.put("/training_runs/{run}/checkpoints/{kind}/{name}/ttl")
    async def ttl(call: Call, run: str, kind: str, name: str) -> Response:
        tenant = tenant_of(service, call)
        _, body = await asked(call, bodies.TimeToLiveBody)
        await asyncio.to_thread(service.shelf.keep, tenant, run, kind, name, body.ttl_seconds)
        return Response(status_code=204)

    @routes.delete("/training_runs/{run}/checkpoints/{kind}/{name}")
    async def delete(call: Call, run: str, kind: str, name: str) -> Response:
        tenant = tenant_of(service, call)
        await asyncio.to_thread(service.forget, tenant, run, kind, name)
        return Response(status_code=204)


def add_refusals(routes: APIRouter, service: TrainingService) -> None:
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
