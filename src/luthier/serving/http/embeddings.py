"""POST /v1/embeddings: vectors of texts, pooled from the hidden states of the base or of an adapter."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from fastapi import APIRouter
from fastapi import Request as Call
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator

from luthier.core.errors import LuthierError
from luthier.engine.worker import PROMPTS
from luthier.serving.http.bodies import asked
from luthier.serving.http.body import Body
from luthier.serving.http.claims import client_of
from luthier.serving.http.refusal import Refusal, refusal_of
from luthier.serving.http.schema import prompts_of
from luthier.serving.http.service import Service


class EmbeddingBody(Body):
    """The body of POST /v1/embeddings."""

    neutral: ClassVar = {"dimensions": ()}
    model: str
    input: Annotated[list[Any], BeforeValidator(prompts_of)]
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["last", "mean"] = "last"
    user: str = ""


def embeddings(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/embeddings")
    async def embed(call: Call) -> JSONResponse:
        body = await asked(call, EmbeddingBody)
        service.refuse_when_draining()
        adapter = service.adapter_of(body.model)
        with service.claims.take(client_of(call), len(body.input)):
            prompts = await service.tokens(body.input, client_of(call))
            vectors: list[list[float]] = []
            for some in batches(prompts):
                try:
                    vectors += await asyncio.to_thread(service.engine.embed, some, adapter, body.pooling)
                except LuthierError as error:
                    raise refusal_of(error) from error
        return JSONResponse(_told(body, vectors, sum(map(len, prompts))))

    return routes


def batches(prompts: list[list[int]]) -> list[list[list[int]]]:
    """Returns prompts in passes of a bounded size: what is decoded waits for each."""
    found: list[list[list[int]]] = []
    for prompt in prompts:
        if not prompt:
            raise Refusal(400, "input: a text has no tokens.", param="input", code="invalid_value")
        longest = max(len(each) for each in [*(found[-1] if found else []), prompt])
        if found and longest * (len(found[-1]) + 1) <= PROMPTS:
            found[-1].append(prompt)
        else:
            found.append([prompt])
    return found


def _told(body: EmbeddingBody, vectors: list[list[float]], tokens: int) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body.model, "pooling": body.pooling, "usage": usage}


def _written(vector: list[float], form: str) -> Any:
    """A vector as numbers, or as base64 of little-endian float32."""
    return vector if form == "float" else base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
