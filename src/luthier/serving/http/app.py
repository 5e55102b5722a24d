"""The HTTP server's app: OpenAI's endpoints, adapters, health, metrics and the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi import Request as Call
from fastapi.responses import JSONResponse, Response

from luthier.serving.http import refusal
from luthier.serving.http.answers import Chat, Choice, Completion, Shape
from luthier.serving.http.bodies import asked
from luthier.serving.http.claims import client_of
from luthier.serving.http.embeddings import embeddings
from luthier.serving.http.guard import Guard, Guarded
from luthier.serving.http.listening import add_page
from luthier.serving.http.metrics import MEDIA
from luthier.serving.http.responses import responses
from luthier.serving.http.schema import AdapterBody, ChatBody, CompletionBody, Sampled
from luthier.serving.http.service import Service
from luthier.serving.http.stream import Events, Flight, events, whole
from luthier.serving.http.wants import Wants
from luthier.serving.training_api import routes as training_api

COMPLETION_TOKENS = 16
"""The default max_tokens of a completion, as in OpenAI's reference."""


def create_app(service: Service, guard: Guard) -> FastAPI:
    """Returns the app of a service. Its engine is started and closed by whoever made it."""
    app = FastAPI(title="luthier serve", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    for routes in (answers(service), embeddings(service), responses(service), models(service), page(service)):
        app.include_router(routes)
    if service.training is not None:
        training_api.install(app, service.training)
    refusal.install(app)
    app.add_middleware(Guarded, guard=guard, requests=service.metrics.requests)
    return app


def answers(service: Service) -> APIRouter:
    """Chat completions and completions."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/chat/completions")
    async def chat(call: Call) -> Response:
        body = await asked(call, ChatBody)
        service.refuse_when_draining()
        service.adapter_of(body.model)
        most = body.max_completion_tokens or body.max_tokens
        with service.claimed(client_of(call), body, 1) as claim:
            prompt, wants = await service.spoken(body, client_of(call))
            flight = service.submit(body, [prompt], most, body.top_logprobs if body.logprobs else None, claim, wants)
        answers = shape(Chat, body, body.logprobs, [prompt], wants)
        service.logs(flight, answers, lambda: [body.logged()])
        return await told(call, body, flight, answers)

    @routes.post("/completions")
    async def completion(call: Call) -> Response:
        body = await asked(call, CompletionBody)
        service.refuse_when_draining()
        service.adapter_of(body.model)
        most = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        with service.claimed(client_of(call), body, len(body.prompt)) as claim:
            prompts, wants = await service.completed(body, client_of(call))
            flight = service.submit(body, prompts, most, body.logprobs, claim, wants)
        answers = shape(Completion, body, body.logprobs is not None, prompts, wants)
        service.logs(flight, answers, lambda: body.prompt)
        return await told(call, body, flight, answers)

    return routes


def shape(kind: type[Shape], body: Sampled, logprobs: bool, prompts: Sequence[list[int]], wants: Wants) -> Shape:
    """Returns the answers of a call before they begin."""
    choices = [Choice(wants.reader()) for _ in range(len(prompts) * body.n)]
    return kind(body.model, logprobs, sum(map(len, prompts)), choices)


async def told(call: Call, body: Sampled, flight: Flight, shape: Shape) -> Response:
    """The answers as a stream or whole, as the body asks."""
    if body.stream:
        return Events(flight, events(flight, shape, body.usage_in_stream()))
    return JSONResponse(await whole(call, flight, shape))


def models(service: Service) -> APIRouter:
    """Returns the base and its adapters: listed as models, loaded and unloaded."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/models")
    async def every() -> dict[str, Any]:
        return {"object": "list", "data": service.models()}

    @routes.get("/models/{name:path}")
    async def one(name: str) -> dict[str, Any]:
        return await service.detail(name)

    @routes.post("/adapters", status_code=201)
    async def load(call: Call) -> dict[str, Any]:
        body = await asked(call, AdapterBody)
        return await service.load(body.name, body.path)

    @routes.delete("/adapters/{name}")
    async def unload(name: str) -> dict[str, Any]:
        return await service.unload(name)

    return routes


def page(service: Service) -> APIRouter:
    """Returns the chat page, health and metrics."""
    routes = APIRouter()
    add_page(routes, {"/": "page.html", "/page.js": "page.js"})

    @routes.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse(*(({"status": "draining"}, 503) if service.draining else ({"status": "ready"}, 200)))

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": MEDIA})

    return routes
