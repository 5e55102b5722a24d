"""What a field of a body says that is wrong."""

from __future__ import annotations

from pydantic_core import PydanticCustomError


def refused(code: str, text: str, field: str | None = None) -> PydanticCustomError:
    """Returns an error whose code and place reach the client; `field` is what lies below the place being read."""
    return PydanticCustomError(code, "{text}", {"text": text, "field": field})  # type: ignore[arg-type]
