"""The process around the app: its start, and its end when SIGTERM comes."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

from luthier.serving.http.app import create_app
from luthier.serving.http.guard import Guard
from luthier.serving.http.listening import Listening
from luthier.serving.http.service import Service

TURN = 5e-4
"""Seconds after which the engine's thread gives Python's lock to the loop, which needs it several times an answer."""
LAST_WORDS = 5
"""Seconds in which answers that are complete may still be sent."""


class Server(Listening):
    """Serves until SIGTERM or SIGINT, then drains: what runs may end, what is new gets 503. A second one ends it."""

    def __init__(
        self, service: Service, guard: Guard, drain: float, ready: Callable[[], None], connections: int = 512
    ) -> None:
        super().__init__(create_app(service, guard), ready, connections, guard.patience, LAST_WORDS)
        self.service, self.seconds = service, drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.draining:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        if self.service.training is not None:
            self.service.training.draining = True
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
    gc.collect()
    gc.freeze()  # what is loaded stays: looking through all of it for garbage stops every thread for .3 seconds
    service.engine.start()
    try:
        if service.training is not None:
            service.training.start()
        server = Server(service, guard, drain, ready, connections)
        asyncio.run(server.serve(sockets=[bound]))
    finally:
        if service.training is not None:
            service.training.close()
        service.engine.close()
        gc.unfreeze()
        sys.setswitchinterval(usual)
