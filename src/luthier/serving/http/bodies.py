"""From the bytes of a body to what it asks: read beside the loop, so that a large one keeps nobody waiting."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request as Call
from pydantic import BaseModel, ValidationError

from luthier.serving.http.refusal import Refusal, invalid

B = TypeVar("B", bound=BaseModel)
SMALL = 2**13
"""Bytes that are read at once."""
ASIDE = ThreadPoolExecutor(1, "luthier-bodies")
"""Where larger ones are read, one at a time, so that many of them take no more than one thread's share."""


async def asked(call: Call, kind: type[B]) -> B:
    """The body of a call; raises `Refusal` for a body that is not JSON, not text, or not of this kind."""
    raw = await call.body()
    media = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (media == "application/json" or media.endswith("+json")):
        raise _unlike()
    if len(raw) <= SMALL:
        return parsed(raw, kind)
    return await asyncio.get_running_loop().run_in_executor(ASIDE, parsed, raw, kind)


def parsed(raw: bytes, kind: type[B]) -> B:
    """Returns a body of a kind; raises `Refusal`."""
    try:
        given = json.loads(raw)
    except json.JSONDecodeError as error:
        raise Refusal(
            400, f"the body is not JSON: {error.msg}, at character {error.pos}.", code="json_invalid"
        ) from None
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, nested too deep
        raise Refusal(400, f"the body cannot be read as JSON: {error}.", code="json_invalid") from None
    if b"\\ud" in raw or b"\\uD" in raw:
        _refuse_halves(given)
    if not isinstance(given, dict):
        raise _unlike()
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)[0]) from None


def _refuse_halves(given: object) -> None:
    """Refuses half of a surrogate pair, which no tokenizer takes."""
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        message = f"the body holds {half} without its other half, which is not a character; send whole ones."
        raise Refusal(400, message, code="invalid_value") from None


def _unlike() -> Refusal:
    return Refusal(400, "expected a JSON object, sent with Content-Type: application/json.", code="invalid_type")
