"""What stands before the app: who may ask, from where, and how much; and what every answer carries."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serving.http.refusal import Refusal
from luthier.serving.http.stream import LEFT

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/", "/page.css", "/page.js", "/theme.js", "/health")
"""What needs no key: the page, which asks for one, and whether the server stands."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
"""Counted by name."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


CLOSE = {"connection": "close"}
"""Of an answer to a body that has not been read: what comes of it would be taken for ever."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Guard:
    """Whom the server answers."""

    api_key: str | None = None
    """What `Authorization: Bearer` must say; None: nothing."""
    hosts: tuple[str, ...] = LOOPBACK
    """Names under which the server may be called; empty: any."""
    max_body: int = 2**20
    """Longest body in bytes."""
    patience: float = 30.0
    """Seconds in which a body has to arrive, and in which a client has to take what is sent to it."""
    own_keys: str | None = None
    """A path below which the routes themselves ask for keys."""
    own_keys_body: int = 2**20
    """Longest body below it."""
    open_paths: tuple[str, ...] = OPEN_PATHS
    """What needs no key."""

    def check(self, scope: Scope) -> None:
        """Raises `Refusal` for a request that is not to be answered."""
        headers = Headers(scope=scope)
        self._host(headers)
        _origin(headers)
        if scope["path"] not in self.open_paths and not self._apart(scope):
            self._key(headers)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.longest(scope):
            raise self.too_large(self.longest(scope))

    def _apart(self, scope: Scope) -> bool:
        return self.own_keys is not None and scope["path"].startswith(f"{self.own_keys}/")

    def longest(self, scope: Scope) -> int:
        """Returns the longest body of a request in bytes."""
        return self.own_keys_body if self._apart(scope) else self.max_body

    def _host(self, headers: Headers) -> None:
        """A page whose name was bound to this address (DNS rebinding) still says its own name here."""
        asked = name_of(headers.get("host", ""))
        if self.hosts and asked not in self.hosts:
            known = ", ".join(self.hosts)
            message = f"this server is not called {asked!r} but {known}; --allowed-host adds names."
            raise Refusal(403, message, code="wrong_host")

    def _key(self, headers: Headers) -> None:
        kind, _, said = headers.get("authorization", "").partition(" ")
        right = self.api_key is None or hmac.compare_digest(said.strip().encode(), self.api_key.encode())
        if self.api_key is not None and not (right and kind.lower() == "bearer"):
            message = "this server needs its API key, as the header `Authorization: Bearer KEY`."
            raise Refusal(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def too_large(self, longest: int) -> Refusal:
        """Returns what a longer body gets."""
        return Refusal(413, f"the body is longer than {longest:,} bytes.", code="body_too_large")

    def too_slow(self) -> Refusal:
        """Returns what a body gets that does not arrive."""
        return Refusal(408, f"the body did not arrive in {self.patience:g} seconds.", code="body_too_slow")


def name_of(host: str) -> str:
    """Returns the name in a Host header, without its port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Body:
    """The body of one request on its way in: not too long, whatever its headers said, and not too slow."""

    def __init__(self, guard: Guard, receive: Receive, longest: int) -> None:
        self.guard, self.receive, self.longest = guard, receive, longest
        self.whole = False
        self._seen, self._end = 0, time.monotonic() + guard.patience

    async def __call__(self) -> Message:
        """The next message; once the body is whole, only the news that the client left can come, at any time."""
        message = await (self.receive() if self.whole else self._in_time())
        self._seen += len(message.get("body", b""))
        self.whole = self.whole or not message.get("more_body", False)
        if self._seen > self.longest:
            raise self.guard.too_large(self.longest)
        return message

    async def _in_time(self) -> Message:
        try:
            return await asyncio.wait_for(self.receive(), max(0.0, self._end - time.monotonic()))
        except asyncio.TimeoutError:
            raise self.guard.too_slow() from None


def _origin(headers: Headers) -> None:
    """Browsers say which page asks: only this server's own may."""
    origin = headers.get("origin")
    try:
        place = None if origin is None else urlsplit(origin).netloc
    except ValueError:
        raise Refusal(400, "the header Origin is not the address of a page.", code="invalid_value") from None
    if origin is not None and place != headers.get("host"):
        raise Refusal(403, f"pages of {origin!r} may not ask this server.", code="wrong_origin")


def _brings(scope: Scope) -> bool:
    """Whether a request has a body."""
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


class Guarded:
    """The app behind its guard: refuses, limits, adds headers and counts answers by code."""

    def __init__(self, app: ASGIApp, guard: Guard, requests: Counter) -> None:
        self.app, self.guard, self.requests = app, guard, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, body = 500, Body(self.guard, receive, self.guard.longest(scope))

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS | ({} if body.whole or not _brings(scope) else CLOSE))
            await asyncio.wait_for(send(message), self.guard.patience)

        try:
            self.guard.check(scope)
            await self.app(scope, body, marked)
        except Refusal as refusal:
            await refusal.response()(scope, receive, marked)
        except ClientDisconnect:  # before its body was complete
            status = LEFT
        except asyncio.TimeoutError:  # a client that takes nothing: the connection ends with the call
            log.info("a client did not read what was sent to it in %g seconds", self.guard.patience)
        finally:
            path = getattr(scope.get("route"), "path", None) or "other"  # what was typed could be anything
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.requests.labels(method, path, status).inc()
