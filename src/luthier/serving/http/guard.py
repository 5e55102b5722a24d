"""What stands before the app: who may ask, from where, and how much; and what every answer carries."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serving.http.refusal import Refusal

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/", "/page.css", "/page.js", "/health")
"""What needs no key: the page, which asks for one, and whether the server stands."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
"""Counted by name."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Guard:
    """Whom the server answers."""

    api_key: str | None = None
    """What `Authorization: Bearer` must say; None: nothing."""
    hosts: tuple[str, ...] = LOOPBACK
    """Names under which the server may be called; empty: any."""
    max_body: int = 2**20
    """Longest body in bytes."""

    def check(self, scope: Scope) -> None:
        """Raises `Refusal` for a request that is not to be answered."""
        headers = Headers(scope=scope)
        self._host(headers)
        _origin(headers)
        if scope["path"] not in OPEN_PATHS:
            self._key(headers)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body:
            raise self.too_large()

    def _host(self, headers: Headers) -> None:
        """A page whose name was bound to this address (DNS rebinding) still says its own name here."""
        asked = name_of(headers.get("host", ""))
        if self.hosts and asked not in self.hosts:
            known = ", ".join(self.hosts)
            message = f"this server is not called {asked!r} but {known}; `luthier serve --allowed-host` adds names."
            raise Refusal(403, message, code="wrong_host")

    def _key(self, headers: Headers) -> None:
        kind, _, said = headers.get("authorization", "").partition(" ")
        right = self.api_key is None or hmac.compare_digest(said.strip().encode(), self.api_key.encode())
        if self.api_key is not None and not (right and kind.lower() == "bearer"):
            message = "this server needs its API key, as the header `Authorization: Bearer KEY`."
            raise Refusal(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def too_large(self) -> Refusal:
        """What a longer body gets."""
        return Refusal(413, f"the body is longer than {self.max_body:,} bytes.", code="body_too_large")

    def limited(self, receive: Receive) -> Receive:
        """`receive`, but a body that turns out too long raises, whatever its headers said."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body:
                raise self.too_large()
            return message

        return counted


def name_of(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _origin(headers: Headers) -> None:
    """Browsers say which page asks: only this server's own may."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise Refusal(403, f"pages of {origin!r} may not ask this server.", code="wrong_origin")


class Guarded:
    """The app behind its guard: refuses, limits, adds headers and counts answers by code."""

    def __init__(self, app: ASGIApp, guard: Guard, requests: Counter) -> None:
        self.app, self.guard, self.requests = app, guard, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 500

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self.guard.check(scope)
            await self.app(scope, self.guard.limited(receive), marked)
        except Refusal as refusal:
            await refusal.response()(scope, receive, marked)
        finally:
            path = getattr(scope.get("route"), "path", None) or "other"  # what was typed could be anything
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.requests.labels(method, path, status).inc()
