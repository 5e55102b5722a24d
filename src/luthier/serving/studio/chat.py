"""Chat with runs: a `luthier serve` of their base with them on it, which only the studio can reach."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
from fastapi import APIRouter
from fastapi import Request as Call
from starlette.responses import Response, StreamingResponse

from luthier.serving.http.listening import HERE, add_page
from luthier.serving.http.refusal import Refusal
from luthier.serving.studio.jobs import Job, Jobs
from luthier.serving.studio.runs import run_of
from luthier.serving.studio.shelf import Shelf

READY = re.compile(rb"chat at (http://127\.0\.0\.1:\d+)")
START = 300.0
"""Seconds that a model has to load."""
PASSED = ("v1/models", "v1/chat/completions")


class Chat:
    """The server that is up, if one is: its runs, its address, and the key that nobody else has."""

    def __init__(self, shelf: Shelf, jobs: Jobs) -> None:
        self.shelf, self.jobs = shelf, jobs
        self.key, self.address, self.names = secrets.token_urlsafe(24), "", list[str]()
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(10.0, read=None), trust_env=False)
        self._lock = asyncio.Lock()

    @property
    def job(self) -> Job | None:
        """The server's process, where it runs."""
        found = self.jobs.known.get("chat")
        return found if found is not None and found.runs else None

    async def open(self, names: Sequence[str]) -> dict[str, Any]:
        """Serves these runs, in place of those before; raises `Refusal` with the server's words where it cannot."""
        folders = [self.shelf.run(name) for name in names]
        bases = {run_of(folder)["model"] for folder in folders}
        if len(bases) != 1:
            message = f"these runs are of {len(bases)} models; one chat has one base."
            raise Refusal(400, message, param="runs", code="invalid_value")
        async with self._lock:
            await self.close()
            adapters = [f"--adapter={folder.name}={folder}" for folder in folders]
            words = ["serve", bases.pop(), *adapters, "--port=0", "--drain=1"]
            job = await self.jobs.begin("chat", words, {"LUTHIER_API_KEY": self.key, "PYTHONUNBUFFERED": "1"})
            self.address = await self._ready(job)
            self.names = list(names)
            return {"runs": self.names}

    async def _ready(self, job: Job) -> str:
        end = time.monotonic() + START
        while job.runs and time.monotonic() < end:
            if found := READY.search(bytes(job.out)):
                return found[1].decode()
            await asyncio.sleep(0.1)
        await job.end(2.0)
        raise Refusal(400, job.trouble() or "the server did not start.", code="command_failed")

    async def close(self) -> None:
        """Ends the server."""
        if self.job is not None:
            await self.job.end(5.0)
        self.names = []

    async def passed(self, call: Call, path: str) -> Response:
        """Asks the server what the page asked, and hands its answer on as it comes."""
        if self.job is None:
            raise Refusal(409, "no chat is open; choose runs in the studio.", code="no_chat")
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        asked = self._client.build_request(
            call.method, f"{self.address}/{path}", content=await call.body(), headers=headers
        )
        try:
            answer = await self._client.send(asked, stream=True)
        except httpx.HTTPError as error:
            raise Refusal(502, f"the chat's server does not answer ({error}).", code="no_chat") from None
        return StreamingResponse(_pieces(answer), answer.status_code, media_type=answer.headers.get("content-type"))


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()  # a page that leaves ends the answer as well


def chat_routes(chat: Chat) -> APIRouter:
    """Returns the chat page of `luthier serve` under /chat/, over the studio's own server."""
    routes = APIRouter(prefix="/chat")
    page = (HERE / "page.html").read_text(encoding="utf-8")
    page = page.replace("<b>luthier</b> serve", '<b>luthier</b> <a href="../">studio</a>')

    @routes.get("/")
    async def first() -> Response:
        return Response(page, media_type="text/html", headers={"cache-control": "no-cache"})

    add_page(routes, {"/page.js": "page.js"})
    for path in PASSED:
        routes.api_route(f"/{path}", methods=["GET" if path.endswith("models") else "POST"])(_passing(chat, path))
    return routes


def _passing(chat: Chat, path: str) -> Any:
    async def pass_on(call: Call) -> Response:
        return await chat.passed(call, path)

    return pass_on
