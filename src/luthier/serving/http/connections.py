"""Connections: how many there may be, of one address and in all, and how long each may take to say what it wants."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.serving.http.refusal import RETRY, Refusal


class Connections:
    """The connections of one server: at most `most`, half of them of one address, each with `patience` seconds for the
    head of a request."""

    def __init__(self, most: int, patience: float) -> None:
        self.most, self.patience = most, patience
        self.open: Counter[str] = Counter()

    def protocol(self) -> type[H11Protocol]:
        """Returns what uvicorn makes one of for each connection."""
        return type("Counted", (Connection,), {"limits": self})

    def take(self, address: str) -> bool:
        """Returns whether one more may come from an address."""
        if self.open.total() >= self.most or self.open[address] >= max(1, self.most // 2):
            return False
        self.open[address] += 1
        return True

    def give_back(self, address: str) -> None:
        """One has ended; an address without any is forgotten."""
        self.open[address] -= 1
        if not self.open[address]:
            del self.open[address]


FULL = Refusal(503, "there are too many connections, or too many of this address.", code="connections_full")


def _spoken(refusal: Refusal) -> bytes:
    body = json.dumps(refusal.body()).encode()
    fields = {"content-type": "application/json", "content-length": len(body), "connection": "close", **RETRY}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {refusal.status_code} Service Unavailable\r\n{head}\r\n".encode() + body


class Connection(H11Protocol):
    """A connection that is counted, and closed where no head of a request comes in time, also between requests."""

    limits: Connections
    _address: str | None = None
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if self.limits.take(address):
            self._address = address
            self._watch()
        else:
            transport.write(_spoken(FULL))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        if self._address is not None:
            self.limits.give_back(self._address)
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._address is not None:
            super().data_received(data)
            self._watch()

    def _watch(self) -> None:
        """Counts the time while a head is awaited, of which a part has come or the first is yet to come."""
        waits = self.conn.their_state is h11.IDLE
        if waits and self._late is None:
            self._late = self.loop.call_later(self.limits.patience, self.transport.close)
        elif not waits and self._late is not None:
            self._late.cancel()
            self._late = None
