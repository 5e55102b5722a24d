"""What may be asked over HTTP. Nothing is accepted and ignored: what is not supported has to be at its neutral value.

Shapes and names are those of OpenAI's API reference (chat completions and completions).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, FailFast, Field, model_validator

from luthier.core.errors import near
from luthier.engine.grammar import Grammar
from luthier.engine.shaping import BIAS, Shaping
from luthier.serving.http.body import Body
from luthier.serving.http.fields import refused
from luthier.serving.http.formats import checked_schema, format_of
from luthier.serving.http.parts import MOST_PICTURES, Part, joined, kept, pictures_of
from luthier.serving.http.tools import AUTO, ToolChoice, choice_of

MOST_CHOICES = 128
"""Answers to one call: prompts times n."""
MOST_STOPS = 16
"""OpenAI takes four; lm-eval's tasks of code send five and the token that ends an answer."""
MOST_TURNS = 2**13
MOST_LABELS = 16
"""Entries of metadata, as in OpenAI's reference."""
MOST_TOOLS = 128


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def prompts_of(value: Any) -> Any:
    """The prompts of a completion: a text, texts, token ids, or lists of token ids."""
    whole = isinstance(value, str) or (isinstance(value, list) and bool(value) and all(map(_number, value)))
    found = [value] if whole else value
    good = isinstance(found, list) and all(isinstance(p, str) or (isinstance(p, list) and p) for p in found)
    if not found or not good or not all(_number(i) for p in found if isinstance(p, list) for i in p):
        raise refused("invalid_value", "prompt or input: expected a text, a list of texts, or (lists of) token ids.")
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


ROLES = ("system", "developer", "user", "assistant", "tool")


def _role(value: Any) -> Any:
    if not isinstance(value, str) or value not in ROLES:
        hint = near(value, ROLES).removesuffix(".") if isinstance(value, str) else ""
        raise refused(
            "unsupported_value", f"role {value!r:.100} is not supported{hint}; there are: {', '.join(ROLES)}."
        )
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
    content: Annotated[list[Part], FailFast(), BeforeValidator(_parts)] = Field(default_factory=list)
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], FailFast()] = Field(default_factory=list)
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
        if self.role != "user" and pictures_of(self.content):
            raise refused("invalid_value", f"a {self.role} turn shows no pictures; a user's does.", "content")
        return self

    def spoken(self) -> dict[str, Any]:
        """Returns the turn as chat templates take it, its parts on lines of their own."""
        more = self.model_dump(include={"name", "tool_call_id", "reasoning_content", "tool_calls"}, exclude_none=True)
        return {"role": self.role, "content": joined(self.content), **{key: each for key, each in more.items() if each}}

    def logged(self) -> dict[str, Any]:
        """Returns the turn as a row to train on has it, its pictures within it."""
        return self.spoken() | {"content": kept(self.content)}


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


def few_labels(value: Any) -> Any:
    """Metadata of no more entries than are looked at one by one."""
    if isinstance(value, dict) and len(value) > MOST_LABELS:
        raise refused("invalid_value", f"metadata: {len(value):,} entries; at most {MOST_LABELS}.", "metadata")
    return value


class StreamOptions(Body):
    """What a stream brings besides the answer."""

    neutral: ClassVar = {"include_obfuscation": (False,)}
    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1)]
Bias = Annotated[float, Field(ge=-BIAS, le=BIAS)]
MOST_BIASES = 1024


def _numbered(value: Any) -> Any:
    """Token ids as numbers: keys of JSON are strings."""
    if not isinstance(value, dict) or not all(str(key).isdecimal() and str(key).isascii() for key in value):
        raise refused("invalid_value", "logit_bias: expected an object of token ids and numbers.")
    return {int(key[:20]): bias for key, bias in value.items()}


class Sampled(Body):
    """What both endpoints take."""

    model: str
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: Annotated[list[Stop], BeforeValidator(_listed), Field(max_length=MOST_STOPS)] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions | None = None
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    logit_bias: Annotated[dict[int, Bias], BeforeValidator(_numbered), Field(max_length=MOST_BIASES)] = Field(
        default_factory=dict
    )
    response_format: Annotated[Grammar | None, BeforeValidator(format_of)] = None
    user: str = ""
    """A label, which nothing follows from; so are those of chats and responses below."""

    def shaping(self) -> Shaping:
        """Returns what happens to logits."""
        return Shaping(
            top_k=max(self.top_k, 0),  # -1 is how some clients say: all
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple(self.logit_bias.items()),
        )

    @model_validator(mode="after")
    def streamed(self) -> Sampled:
        """Raises for options of a stream where there is none."""
        if self.stream_options is not None and not self.stream:
            raise refused("unsupported_parameter", "stream_options needs stream: true.", "stream_options")
        return self

    def usage_in_stream(self) -> bool:
        """Whether the stream is to end with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(Sampled):
    """The body of POST /v1/chat/completions."""

    neutral: ClassVar = {
        "functions": ([],), "function_call": ("none", "auto"), "modalities": (["text"],), "audio": (),
        "prediction": (), "reasoning_effort": (), "service_tier": ("auto", "default"), "store": (False,),
        "verbosity": (), "web_search_options": (),
    }  # fmt: skip
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_TURNS), FailFast()]
    tools: Annotated[list[Tool], FailFast(), Field(max_length=MOST_TOOLS)] = Field(default_factory=list)
    tool_choice: Annotated[ToolChoice, BeforeValidator(choice_of)] = AUTO
    parallel_tool_calls: bool = True
    documents: Annotated[list[dict[str, Any]], FailFast()] = Field(default_factory=list)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    metadata: Annotated[dict[str, str], BeforeValidator(few_labels)] = Field(default_factory=dict)
    prompt_cache_key: str = ""
    safety_identifier: str = ""

    def spoken(self) -> list[dict[str, Any]]:
        """Returns the turns as chat templates take them."""
        return [message.spoken() for message in self.messages]

    def logged(self) -> list[dict[str, Any]]:
        """Returns the turns as a row to train on has them, their pictures within them."""
        return [message.logged() for message in self.messages]

    def shown_tools(self) -> list[Tool]:
        """Returns the tools that the model is told of."""
        return [] if self.tool_choice.kind == "none" else self.tools

    @model_validator(mode="after")
    def agreeing(self) -> ChatBody:
        """Raises where two parameters contradict each other."""
        if self.top_logprobs and not self.logprobs:
            raise refused("unsupported_parameter", "top_logprobs needs logprobs: true.", "top_logprobs")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise refused("unsupported_value", "max_tokens and max_completion_tokens differ; give one.", "max_tokens")
        known = [tool.name for tool in self.tools]
        if twice := next((name for name in known if known.count(name) > 1), None):
            raise refused("invalid_value", f"tools: two are named {twice!r}.", "tools")
        self.tool_choice.check(known)
        if len(self.pictures()) > MOST_PICTURES:
            message = f"messages: {len(self.pictures())} pictures; at most {MOST_PICTURES}."
            raise refused("invalid_value", message, "messages")
        return self

    def pictures(self) -> list[str]:
        """Returns the pictures of all turns, as `data:` URLs."""
        return [picture for turn in self.messages for picture in pictures_of(turn.content)]


class CompletionBody(Sampled):
    """The body of POST /v1/completions."""

    neutral: ClassVar = {"best_of": (1,), "suffix": ("",)}
    prompt: Annotated[list[Any], BeforeValidator(prompts_of)]
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    echo: bool = False

    @model_validator(mode="after")
    def some(self) -> CompletionBody:
        """Raises for an answer of no tokens, unless it is to be the prompt itself."""
        if self.max_tokens == 0 and not self.echo:
            raise refused("invalid_value", "max_tokens: 0 tokens are for echo: true alone.", "max_tokens")
        return self


class AdapterBody(Body):
    """The body of POST /v1/adapters."""

    name: str
    path: str
