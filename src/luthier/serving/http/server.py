"""The process around the app: its socket, its start, and its end when SIGTERM comes."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from luthier.core.errors import LuthierError
from luthier.serving.http.app import create_app
from luthier.serving.http.connections import Connections
from luthier.serving.http.guard import Guard
from luthier.serving.http.service import Service

TURN = 5e-4
"""Seconds after which the engine's thread gives Python's lock to the loop, which needs it several times an answer."""
LAST_WORDS = 5
"""Seconds in which answers that are complete may still be sent."""


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket at that address, not listening yet, so that clients see that the server is not there yet."""
    if not 0 <= port < 2**16:
        raise LuthierError(f"port is {port}; expected 0 (a free one) to {2**16 - 1}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise LuthierError(f"cannot serve at {host}, port {port}: {error.strerror}.") from error
    return made


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, then drains: what runs may end, what is new gets 503. A second one ends it."""

    def __init__(
        self, service: Service, guard: Guard, drain: float, ready: Callable[[], None], connections: int = 512
    ) -> None:
        config = uvicorn.Config(
            create_app(service, guard),
            http=Connections(connections, guard.patience).protocol(),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LAST_WORDS,
        )
        super().__init__(config)
        self.service, self.seconds, self.ready = service, drain, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.draining:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        engine = self.service.engine
        if not engine.drain(self.seconds):
            engine.close()  # what still runs is cancelled, and its clients hear so
        self.should_exit = True


def serve(
    service: Service,
    guard: Guard,
    bound: socket.socket,
    drain: float,
    ready: Callable[[], None],
    connections: int = 512,
) -> None:
    """Serves on a bound socket until a signal ends it; `ready()` is called once clients are taken."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(TURN)
    service.engine.start()
    try:
        server = Server(service, guard, drain, ready, connections)
        asyncio.run(server.serve(sockets=[bound]))
    finally:
        service.engine.close()
        sys.setswitchinterval(usual)
