"""Calls: whose they are, what they bring, and how a result is promised."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import APIRouter
from fastapi import Request as Call
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from luthier.serving.http.bodies import parsed
from luthier.serving.http.refusal import Refusal
from luthier.serving.training_api.service import LARGEST_BODY, TrainingService
from luthier.serving.training_api.tenants import Tenant

B = TypeVar("B", bound=BaseModel)


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
        zstandard = importlib.import_module("zstandard")
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


@dataclass(frozen=True)
class Asked(Generic[B]):
    """A call that was let in: whose it is, and what it says."""

    tenant: Tenant
    raw: bytes
    body: B


def takes(
    routes: APIRouter,
    service: TrainingService,
    path: str,
    kind: type[B],
    answer: Callable[[Asked[B]], Any],
    reply: Callable[[Any], Any] = lambda found: found,
) -> None:
    """Adds a route for JSON bodies of a kind: whose it is, what it says, and an answer that may take its time.

    `answer` runs in a thread of its own; `reply` makes what is sent of what it returns.
    """

    @routes.post(path)
    async def route(call: Call) -> Any:
        tenant = tenant_of(service, call)
        raw, body = await asked(call, kind)
        return reply(await asyncio.to_thread(answer, Asked(tenant, raw, body)))


def future(request_id: str, **more: Any) -> JSONResponse:
    """Returns the promise of a result."""
    return JSONResponse({"request_id": request_id, **more})
