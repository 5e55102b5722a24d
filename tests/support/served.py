"""The real server over a socket, in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from luthier.serving.http.guard import LOOPBACK, Guard
from luthier.serving.http.listening import bind
from luthier.serving.http.server import Server
from luthier.serving.http.service import Service


@contextmanager
def serving(engine: Any, guard: Guard | None = None, **settings: Any) -> Iterator[str]:
    """The address of a server of `engine` on a free port, in a thread of this process."""
    ready = threading.Event()
    connections = settings.pop("connections", 512)
    service = Service(engine, settings.pop("tokenizer", None) or engine.tokenizer, "base", **settings)
    server = Server(service, guard or Guard(hosts=LOOPBACK), 5.0, ready.set, connections)
    with bind("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(15)
    assert not thread.is_alive()
