"""`tools` and `tool_choice`: what a model may call, and whether it has to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.core.errors import near
from luthier.serving.http.body import Body, refused
from luthier.serving.http.formats import checked_schema


class Function(Body):
    """A function that may be called. `strict`: its arguments are held to its parameters."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only ones."""

    type: Literal["function"]
    function: Function

    @property
    def name(self) -> str:
        """What it is called."""
        return self.function.name

    def shown(self) -> dict[str, Any]:
        """Returns it as chat templates take it."""
        told = self.function.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
        return {"type": "function", "function": told}

    def schema_of_arguments(self) -> Any:
        """Returns the JSON schema of its arguments."""
        return checked_schema(self.function.parameters or {"type": "object"}, "tools")


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
            raise refused("invalid_value", f"tool_choice: there is no tool {self.name!r}{hint}.", "tool_choice")


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
