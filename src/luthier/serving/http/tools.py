"""`tools` and `tool_choice`: what a model may call, and whether it has to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.errors import near
from luthier.serving.http.fields import refused


@dataclass(frozen=True)
class ToolChoice:
    """Whether tools are called: none (they are not shown), auto, required, or one by its name."""

    kind: Literal["none", "auto", "required", "named"]
    name: str | None = None

    @property
    def forced(self) -> bool:
        """Whether the answer has to be a call."""
        return self.kind in ("required", "named")

    def check(self, known: Sequence[str]) -> None:
        """Raises where it asks for a tool that was not given."""
        if self.forced and not known:
            raise refused("invalid_value", "tool_choice asks for a call, and there are no tools.", "tool_choice")
        if self.kind == "named" and self.name not in known:
            hint = near(str(self.name), known).removesuffix(".")
            raise refused("invalid_value", f"tool_choice: there is no tool {self.name!r:.100}{hint}.", "tool_choice")


AUTO = ToolChoice("auto")


def choice_of(value: Any) -> ToolChoice:
    """Returns what `tool_choice` says."""
    if isinstance(value, ToolChoice):
        return value
    if value in ("none", "auto", "required"):
        return ToolChoice(value)
    named = value.get("function") if isinstance(value, dict) and set(value) == {"type", "function"} else None
    if (
        isinstance(named, dict)
        and value["type"] == "function"
        and isinstance(named.get("name"), str)
        and len(named) == 1
    ):
        return ToolChoice("named", named["name"])
    message = f"tool_choice {value!r:.100} is not supported; there are: none, auto, required, and a named function."
    raise refused("unsupported_value", message)
