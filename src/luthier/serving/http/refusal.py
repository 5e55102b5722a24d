"""Refusals: every answer that is not a success, in the shape that OpenAI's clients read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from luthier.core.errors import LuthierError
from luthier.core.guard import is_full
from luthier.engine.request import Busy

KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
"""`error.type` by status; the others are invalid_request_error."""
RETRY = {"retry-after": "1"}
"""Seconds after which a place in the queue may be free."""
OWN = ("unsupported_parameter", "unsupported_value", "unknown_parameter", "missing_parameter", "invalid_value")
"""Codes that the bodies of `schema` raise by themselves."""


class Refusal(HTTPException):
    """An HTTP answer that is not a success: status, message, and the parameter and code of OpenAI's errors."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """Returns the body `{"error": {"message", "type", "param", "code"}}`."""
        kind = KINDS.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Returns the answer itself."""
        return JSONResponse(self.body(), self.status_code, self.headers)


def refusal_of(error: LuthierError) -> Refusal:
    """Returns what a `LuthierError` of the engine is over HTTP: 429 when it is busy, 503 of a full disk, else 400."""
    if is_full(error):
        return _full()
    if isinstance(error, Busy):
        return Refusal(429, str(error), code="queue_full", headers=RETRY)
    return Refusal(400, str(error))


def _full() -> Refusal:
    return Refusal(503, "the server's disk is full; try again when there is space.", code="disk_full", headers=RETRY)


def install(app: FastAPI) -> None:
    """Every error of the app leaves it in one shape."""

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        told = error if isinstance(error, Refusal) else Refusal(error.status_code, error.detail, headers=error.headers)
        return told.response()

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return invalid({**first, "loc": first["loc"][1:]}).response()

    @app.exception_handler(LuthierError)
    async def ours(request: Request, error: LuthierError) -> JSONResponse:
        return refusal_of(error).response()

    @app.exception_handler(OSError)
    @app.exception_handler(sqlite3.Error)
    async def machine(request: Request, error: Exception) -> JSONResponse:
        if is_full(error):
            return _full().response()
        raise error

    @app.exception_handler(Exception)  # told shortly here, and with its traceback in the server's log
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return Refusal(500, f"the server failed ({type(error).__name__}); its log says more.").response()


def invalid(error: Mapping[str, Any]) -> Refusal:
    """Returns what pydantic found wrong with a body, or with a part of the path."""
    kind, place = error["type"], list(error["loc"])
    if not place and kind not in OWN:
        return Refusal(400, "expected a JSON object, sent with Content-Type: application/json.", code="invalid_type")
    param = path([*place, *[field for field in [error.get("ctx", {}).get("field")] if field]])
    code = kind if kind in OWN else "missing_parameter" if kind == "missing" else "invalid_value"
    message = error["msg"] if kind in OWN else f"{param}: {error['msg'][:1].lower()}{error['msg'][1:]}."
    return Refusal(400, message, param=param, code=code)


def path(place: Iterable[str | int]) -> str:
    """Returns `messages[0].content` of ("messages", 0, "content")."""
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in place).lstrip(".")
