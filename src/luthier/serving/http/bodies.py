"""From the bytes of a body to what it asks: read beside the loop, so that a large one keeps nobody waiting."""

from __future__ import annotations

import asyncio
import json
import json.scanner
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request as Call
from pydantic import BaseModel, ValidationError

from luthier.core.json_text import once
from luthier.serving.http.claims import client_of, lane
from luthier.serving.http.refusal import Refusal, invalid

B = TypeVar("B", bound=BaseModel)
SMALL = 2**13
"""Bytes that are read at once."""
ASIDE = ThreadPoolExecutor(1, "luthier-bodies")
"""Where larger ones are read, one at a time, so that many of them take no more than one thread's share."""
FEW = 2**13
"""Values that are read in one go, which keeps Python's lock for some milliseconds."""
MOST_VALUES = 2**17 + 2**13
"""Numbers, texts, lists and objects of a body, the last two counted as `HEAVY` each: as many as a long prompt has token
ids."""
HEAVY = 4


async def asked(call: Call, kind: type[B]) -> B:
    """The body of a call; raises `Refusal` for a body that is not JSON, not text, or not of this kind."""
    raw = await call.body()
    media = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (media == "application/json" or media.endswith("+json")):
        raise _unlike()
    if len(raw) <= SMALL:
        return parsed(raw, kind)
    async with lane(client_of(call)):
        return await asyncio.get_running_loop().run_in_executor(ASIDE, parsed, raw, kind, Counting)


class Once(json.JSONDecoder):
    """Refuses an object in which a key stands twice, of which the last would be taken unsaid."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=once)


class Counting(json.JSONDecoder):
    """Reads as `Once`, but value by value in Python, so that other threads get their turns, and at most `MOST_VALUES`.

    json's own decoder reads a megabyte of small values in one call of up to half a second, in which no other thread
    runs. The parts that it is made of are there in Python as well.
    """

    def __init__(self) -> None:
        super().__init__(parse_int=self._counted(int), parse_float=self._counted(float), object_pairs_hook=once)
        self.left = MOST_VALUES
        self.parse_object = self._counted(self.parse_object, HEAVY)
        self.parse_array = self._counted(self.parse_array, HEAVY)
        self.parse_string = self._counted(self.parse_string)
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    def _counted(self, parse: Callable[..., Any], weight: int = 1) -> Callable[..., Any]:
        def counted(*told: Any) -> Any:
            self.left -= weight
            if self.left < 0:
                raise Refusal(400, "the body holds more values than a request may.", code="too_many_values")
            return parse(*told)

        return counted


def parsed(raw: bytes, kind: type[B], decoder: type[json.JSONDecoder] = Once) -> B:
    """Returns a body of a kind, read by `decoder` where it holds many values; raises `Refusal`."""
    given = fields_of(raw, decoder)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)[0]) from None


def fields_of(raw: bytes, decoder: type[json.JSONDecoder] = Once) -> dict[str, Any]:
    """Returns the JSON object that a body is, whatever its fields are; raises `Refusal`."""
    few = sum(map(raw.count, (b",", b"[", b"{"))) <= FEW
    try:
        given = json.loads(raw, cls=Once if few else decoder)
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
    return given


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
