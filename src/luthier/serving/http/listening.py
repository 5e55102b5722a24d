"""What every server here is: a socket, its address, a uvicorn with our bounds, and the files of its page."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.responses import Response

from luthier.core.errors import LuthierError
from luthier.core.palette import styled
from luthier.serving.http.connections import Connections

HERE = Path(__file__).parent
SHARED = ("/page.css", "/theme.js")
MEDIA = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


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


def address(host: str, bound: socket.socket) -> str:
    """Returns the URL of a bound socket, as a browser takes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


class Listening(uvicorn.Server):
    """Serves until a signal ends it, and says once when clients are taken."""

    def __init__(
        self, app: FastAPI, ready: Callable[[], None], connections: int, patience: float, last_words: int
    ) -> None:
        """`patience` are the seconds that a client may take, `last_words` those for what runs at the end."""
        config = uvicorn.Config(
            app,
            http=Connections(connections, patience).protocol(),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=last_words,
        )
        super().__init__(config)
        self.ready = ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM ends it in good order, and so does not go on to end the command as one that was interrupted."""
        if sig == signal.SIGTERM:
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()


def add_page(routes: APIRouter | FastAPI, files: Mapping[str, str], folder: Path = HERE) -> None:
    """Adds the files of a page, `{path: name in the folder}`, and the style and the theme that all pages share."""
    shared = {path: HERE / path[1:] for path in SHARED}
    for path, file in {**{path: folder / name for path, name in files.items()}, **shared}.items():
        text = styled(file) if file.suffix == ".css" else file.read_text(encoding="utf-8")
        routes.get(path)(_answer(text, MEDIA[file.suffix]))


def _answer(text: str, media: str) -> Any:
    async def read() -> Response:
        return Response(text, media_type=media, headers={"cache-control": "no-cache"})

    return read
