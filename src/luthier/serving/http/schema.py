"""What may be asked over HTTP. Nothing is accepted and ignored: what is not supported has to be at its neutral value.

Shapes and names are those of OpenAI's API reference (chat completions and completions).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator
from pydantic_core import PydanticCustomError

from luthier.core.errors import near

MOST_CHOICES = 128
"""Answers to one call: prompts times n."""
MOST_STOPS = 4
MOST_TURNS = 2**13


def refused(code: str, text: str, field: str | None = None) -> PydanticCustomError:
    """Returns an error whose code and place reach the client; `field` is what lies below the place being read."""
    return PydanticCustomError(code, "{text}", {"text": text, "field": field})  # type: ignore[arg-type]


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
            if name in cls.neutral and value not in cls.neutral[name]:
                raise refused("unsupported_parameter", f"this server does not support {name!r}; leave it out.", name)
            if name not in cls.neutral and name not in cls.model_fields:
                hint = near(name, cls.model_fields).removesuffix(".")
                raise refused("unknown_parameter", f"there is no parameter {name!r}{hint}.", name)
        return {name: value for name, value in told.items() if name in cls.model_fields}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    """The prompts of a completion: a text, texts, token ids, or lists of token ids."""
    whole = isinstance(value, str) or (isinstance(value, list) and bool(value) and all(map(_number, value)))
    found = [value] if whole else value
    good = isinstance(found, list) and all(isinstance(p, str) or (isinstance(p, list) and p) for p in found)
    if not found or not good or not all(_number(i) for p in found if isinstance(p, list) for i in p):
        raise refused("invalid_value", "prompt: expected a text, a list of texts, or (lists of) token ids.")
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class TextPart(Body):
    """A part of a message."""

    type: str
    text: str

    @model_validator(mode="before")
    @classmethod
    def only_text(cls, given: Any) -> Any:
        """Raises for images, sound and files."""
        if isinstance(given, dict) and given.get("type", "text") != "text":
            raise refused(
                "unsupported_value", f"content of type {given['type']!r} is not supported, only text.", "type"
            )
        return given


ROLES = ("system", "developer", "user", "assistant", "tool")


def _role(value: Any) -> Any:
    if not isinstance(value, str) or value not in ROLES:
        hint = near(value, ROLES).removesuffix(".") if isinstance(value, str) else ""
        raise refused("unsupported_value", f"role {value!r} is not supported{hint}; there are: {', '.join(ROLES)}.")
    return value


def _choice(value: Any) -> Any:
    """Whether tools are shown: a model that sees them may call them, and cannot be made to."""
    if value not in ("none", "auto"):
        raise refused("unsupported_value", f"tool_choice {value!r} is not supported; there are: none, auto.")
    return value


class Called(Body):
    """The function of a call: its name, and its arguments as JSON."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Body):
    """A call that an assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Called


class Message(Body):
    """A turn of a conversation."""

    neutral: ClassVar = {"refusal": (), "audio": (), "function_call": (), "annotations": ([],)}
    role: Annotated[str, BeforeValidator(_role)]
    content: Annotated[list[TextPart], FailFast(), BeforeValidator(_parts)] = []
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], FailFast()] = []
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def said(self) -> Message:
        """Raises for a turn that says nothing, and for what only an assistant or a tool says."""
        if not self.content and not self.tool_calls:
            raise refused("missing_parameter", "content: a turn without calls needs some.", "content")
        if self.tool_calls and self.role != "assistant":
            raise refused("invalid_value", f"a {self.role} turn has no tool_calls.", "tool_calls")
        if self.reasoning_content is not None and self.role != "assistant":
            raise refused("invalid_value", f"a {self.role} turn has no reasoning_content.", "reasoning_content")
        if self.tool_call_id is not None and self.role != "tool":
            raise refused("invalid_value", f"a {self.role} turn has no tool_call_id.", "tool_call_id")
        return self

    def spoken(self) -> dict[str, Any]:
        """Returns the turn as chat templates take it, its parts on lines of their own."""
        more = self.model_dump(include={"name", "tool_call_id", "reasoning_content", "tool_calls"}, exclude_none=True)
        content = "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": content, **{key: value for key, value in more.items() if value}}


class StreamOptions(Body):
    """What a stream brings besides the answer."""

    neutral: ClassVar = {"include_obfuscation": (False,)}
    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1)]


class Sampled(Body):
    """What both endpoints take."""

    model: str
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: Annotated[list[Stop], BeforeValidator(_listed), Field(max_length=MOST_STOPS)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def streamed(self) -> Sampled:
        """Raises for options of a stream where there is none."""
        if self.stream_options is not None and not self.stream:
            raise refused("unsupported_parameter", "stream_options needs stream: true.", "stream_options")
        return self

    def usage_in_stream(self) -> bool:
        """Whether the stream is to end with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "user": ("",),
}


class ChatBody(Sampled):
    """The body of POST /v1/chat/completions."""

    neutral: ClassVar = NEUTRAL | {
        "response_format": ({"type": "text"},), "functions": ([],),
        "function_call": ("none", "auto"), "parallel_tool_calls": (True, False), "modalities": (["text"],),
        "audio": (), "prediction": (), "reasoning_effort": (), "service_tier": ("auto", "default"), "store": (False,),
        "metadata": ({},), "verbosity": (), "web_search_options": (), "prompt_cache_key": (), "safety_identifier": (),
    }  # fmt: skip
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_TURNS), FailFast()]
    tools: Annotated[list[dict[str, Any]], FailFast()] = []
    tool_choice: Annotated[str, BeforeValidator(_choice)] = "auto"
    documents: Annotated[list[dict[str, Any]], FailFast()] = []
    chat_template_kwargs: dict[str, Any] = {}
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0

    @model_validator(mode="after")
    def agreeing(self) -> ChatBody:
        """Raises where two parameters contradict each other."""
        if self.top_logprobs and not self.logprobs:
            raise refused("unsupported_parameter", "top_logprobs needs logprobs: true.", "top_logprobs")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise refused("unsupported_value", "max_tokens and max_completion_tokens differ; give one.", "max_tokens")
        return self


class CompletionBody(Sampled):
    """The body of POST /v1/completions."""

    neutral: ClassVar = NEUTRAL | {"echo": (False,), "best_of": (1,), "suffix": ("",)}
    prompt: Annotated[list[Any], BeforeValidator(_prompts)]
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None


class AdapterBody(Body):
    """The body of POST /v1/adapters."""

    name: str
    path: str
