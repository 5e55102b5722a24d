"""How many places of the engine one client may hold, from before its prompt is tokenised until its answers ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from weakref import WeakValueDictionary

from fastapi import Request as Call

from luthier.serving.http.refusal import RETRY, Refusal


class Claims:
    """Places by client; all are handled on the server's loop."""

    def __init__(self, places: int, per_client: int | None) -> None:
        """`per_client` None: one client may hold all."""
        self.most = places if per_client is None else min(places, per_client)
        self._held: Counter[str] = Counter()

    def take(self, client: str, count: int) -> Claim:
        """Reserves places at once; raises 400 for more than a client may ever hold, 429 for what is too much now."""
        if count > self.most:
            message = f"{count} answers in one call, and a client may have {self.most} at a time; ask for fewer."
            raise Refusal(400, message, param="n", code="invalid_value")
        if self._held[client] + count > self.most:
            message = f"this client waits for {self._held[client]} answers, and may for {self.most}; try again later."
            raise Refusal(429, message, code="client_queue_full", headers=RETRY)
        self._held[client] += count
        return Claim(self, client, count)

    def give_back(self, client: str, count: int) -> None:
        """Frees places; a client without any is forgotten."""
        self._held[client] -= count
        if not self._held[client]:
            del self._held[client]


class Claim:
    """Places that a call holds until it is over, however it ends; within its block it is over unless it was `kept`."""

    def __init__(self, claims: Claims, client: str, count: int) -> None:
        self._claims, self._client, self._count = claims, client, count
        self.kept = False

    def over(self) -> None:
        """Gives the places back, once."""
        count, self._count = self._count, 0
        if count:
            self._claims.give_back(self._client, count)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.kept:
            self.over()


def client_of(call: Call) -> str:
    """Returns the address that a call comes from."""
    return call.client.host if call.client else ""


_lanes: WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock] = WeakValueDictionary()


def lane(client: str) -> asyncio.Lock:
    """Returns what a client holds while a body or a prompt of its is read: one at a time, so that clients take turns
    however much one of them sends."""
    return _lanes.setdefault((asyncio.get_running_loop(), client), asyncio.Lock())
