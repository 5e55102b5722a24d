"""Between the engine's thread and the server's loop: requests go in, their pieces come out in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request as Call
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from luthier.engine.request import Chunk, Request, Ticket
from luthier.serving.http.answers import Shape
from luthier.serving.http.metrics import Watch
from luthier.serving.http.refusal import Refusal

if TYPE_CHECKING:
    from luthier.engine.engine import Engine

LEFT = 499
"""The status that a request is counted under when its client left; nginx's."""


class Flight:
    """Several requests under way, and their pieces as they come. Made on the server's loop."""

    def __init__(
        self, engine: Engine, requests: Sequence[Request], watch: Watch, over: Callable[[], None] = lambda: None
    ) -> None:
        """Submits all or none; raises what the engine raises. `over` is called when all have ended."""
        self.chunks: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue()
        self.watch, self._over = watch, over
        self.ended: list[Callable[[], None]] = []
        """What is called once when the answers have ended, complete or not."""
        loop = asyncio.get_running_loop()
        delivers = [self._deliver(loop, index) for index in range(len(requests))]
        self.tickets: list[Ticket] = engine.submit_all(requests, delivers)

    def _deliver(self, loop: asyncio.AbstractEventLoop, index: int) -> Any:
        def deliver(chunk: Chunk) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(self.chunks.put_nowait, (index, chunk))

        return deliver

    async def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        """(number of the request, piece) until every request has ended; raises `Refusal` when one failed."""
        left = len(self.tickets)
        while left:
            index, chunk = await self.chunks.get()
            self.watch.chunk(chunk)
            if chunk.finish in FAILED:
                raise failed(chunk)
            left -= chunk.finish is not None
            yield index, chunk

    def cancel(self) -> None:
        """Ends what has not ended yet."""
        for ticket in self.tickets:
            ticket.cancel()
        self._over()
        ended, self.ended = self.ended, []
        for call in ended:
            call()


FAILED = ("error", "cancelled")


def failed(chunk: Chunk) -> Refusal:
    """Returns what a client hears whose request ended without an answer."""
    if chunk.finish == "cancelled":
        return Refusal(503, "the server stopped before the answer was complete.", code="cancelled")
    return Refusal(500, chunk.error or "the engine failed.", code="engine_failed")


async def whole(call: Call, flight: Flight, shape: Shape) -> dict[str, Any]:
    """The complete answers; a client that leaves cancels them."""
    left = asyncio.ensure_future(call.receive())  # after the body, only the news that the client left can come
    work = asyncio.ensure_future(_gathered(flight, shape))
    try:
        await asyncio.wait((left, work), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise Refusal(LEFT, "the client left.")
    finally:
        flight.cancel()
        left.cancel()
        work.cancel()


async def _gathered(flight: Flight, shape: Shape) -> dict[str, Any]:
    async for index, chunk in flight:
        shape.choices[index].add(chunk)
    return shape.whole()


async def events(flight: Flight, shape: Shape, usage: bool) -> AsyncIterator[str]:
    """The answers as server-sent events; a failure is the last of them, since the status has been sent."""
    told = {"usage": None} if usage else {}
    for each in shape.first():
        yield shape.event(each)
    try:
        async for index, chunk in flight:
            if chunk.text or chunk.tokens or chunk.finish:
                for part in shape.parts(index, chunk):
                    yield shape.event(part | told)
    except Refusal as refusal:
        yield shape.event(shape.broken(refusal.body()))
        return
    for each in shape.last(usage):
        yield shape.event(each)
    yield shape.end


class Events(StreamingResponse):
    """A stream of events that cancels its requests however it ends, also before it began."""

    def __init__(self, flight: Flight, content: AsyncIterator[str]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self.flight = flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.flight.cancel()
