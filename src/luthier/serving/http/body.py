"""What a JSON object of a call may hold: nothing is accepted and ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from luthier.core.errors import near
from luthier.serving.http.fields import refused


def _same(value: Any, other: Any) -> bool:
    """Whether two values of JSON are one: 1.0 is 1 there, and true is not."""
    return isinstance(value, bool) is isinstance(other, bool) and value == other


class Body(BaseModel):
    """A JSON object. null is as if left out; an unknown name is an error, and so is an unsupported one in use."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """What this server does not support, with the values at which it asks for nothing (null always does)."""

    @model_validator(mode="before")
    @classmethod
    def supported(cls, given: Any) -> Any:
        """The fields, without what asks for nothing."""
        if not isinstance(given, dict):
            return given
        told = {name: value for name, value in given.items() if value is not None}
        for name, value in told.items():
            if name in cls.neutral and not any(_same(value, each) for each in cls.neutral[name]):
                raise refused("unsupported_parameter", f"this server does not support {name!r}; leave it out.", name)
            if name not in cls.neutral and name not in cls.model_fields:
                hint = near(name, cls.model_fields)
                raise refused("unknown_parameter", f"there is no parameter {name!r:.100}{hint}", name[:100])
        return {name: value for name, value in told.items() if name in cls.model_fields}
