"""What a call wants of its answers beyond settings of sampling: a form, calls of tools, the prompt before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import LuthierError
from luthier.engine.grammar import Compiled, Grammar, inline
from luthier.engine.turns import Turns
from luthier.serving.http.callreader import CallReader
from luthier.serving.http.calls import CallFormat, call_format, calls_in_lark, chosen_in_lark
from luthier.serving.http.formats import schema_text
from luthier.serving.http.refusal import Refusal
from luthier.serving.http.schema import ChatBody

FORMATS = 64
"""Templates whose way of writing calls is kept."""


@dataclass(frozen=True)
class Wants:
    """What the engine is told, and how the answers are read."""

    grammar: Compiled | None = None
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides those that the client named."""
    shown: frozenset[int] = frozenset()
    written: CallFormat | None = None
    """How calls are written; None: whatever comes is text."""
    tools: Mapping[str, Any] = field(default_factory=dict)
    """The schemas of the arguments of each tool that may be called."""
    one: bool = False
    """At most one call."""
    echo: tuple[str, ...] = ()
    """The texts of the prompts, where answers begin with them."""
    turns: Turns | None = None
    """Who writes the arguments of tools, where that is not the adapter that was asked for."""

    def reader(self) -> CallReader | None:
        """Returns what reads one answer."""
        return None if self.written is None else CallReader(self.written, self.tools, self.one)


class CallFormats:
    """How templates write calls, each learned once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], CallFormat | None] = {}

    def of(self, tokenizer: Any, variables: Mapping[str, Any]) -> CallFormat | None:
        """Returns how the tokenizer's template writes calls; None where that cannot be read."""
        key = (str(tokenizer.chat_template), repr(sorted(variables.items())))
        if key not in self._known:
            if len(self._known) >= FORMATS:
                self._known.clear()
            self._known[key] = call_format(tokenizer, variables)
        return self._known[key]


def grammar_of(body: ChatBody, written: CallFormat | None, tokenizer: Any) -> Grammar | None:
    """Returns what the answers of a chat have to match. Raises `Refusal` where calls cannot be held to a form."""
    tools, choice = body.shown_tools(), body.tool_choice
    strict = [tool for tool in tools if tool.function.strict]
    if not tools or not (choice.forced or strict or body.response_format):
        return body.response_format
    if written is None:
        param = "tool_choice" if choice.forced else "response_format" if body.response_format else "tools"
        raise _unread(param)
    named = [tool for tool in tools if choice.kind != "named" or tool.name == choice.name]
    arguments = {tool.name: tool.schema_of_arguments() for tool in named}
    most = 1 if choice.kind == "named" or not body.parallel_tool_calls else None
    calls = calls_in_lark(written, arguments, tokenizer, most)
    if choice.forced:
        return Grammar("lark", "\n".join(["start: calls", *calls]))
    try:
        return Grammar("lark", chosen_in_lark(calls, written, _otherwise(body), tokenizer))
    except LuthierError as error:
        raise Refusal(400, f"tools: strict: {error}.", param="tools", code="unsupported_value") from None


def _otherwise(body: ChatBody) -> str | None:
    """What an answer that calls nothing has to match; None: nothing."""
    if (form := body.response_format) is None:
        return None
    if form.kind != "json":
        message = "response_format: beside tools it is a JSON schema or json_object."
        raise Refusal(400, message, param="response_format", code="unsupported_value")
    return inline(schema_text(form))


def _unread(param: str) -> Refusal:
    message = (
        f"{param}: this model's chat template writes calls in no form that can be read back, so answers cannot be held "
        "to it; with tool_choice auto and tools that are not strict, calls stand in the content."
    )
    return Refusal(400, message, param=param, code="unsupported_value")


def wants_of(body: ChatBody, written: CallFormat | None, grammar: Compiled | None, tokenizer: Any) -> Wants:
    """Returns what a chat wants, its grammar compiled."""
    tools = {tool.name: tool.function.parameters or {} for tool in body.shown_tools()}
    if not tools or written is None:
        return Wants(grammar)
    single = not body.parallel_tool_calls or body.tool_choice.kind == "named"
    stop = _end(written, tokenizer) if single and grammar is None else ()
    return Wants(grammar, stop, written.tokens(tokenizer), written, tools, single)


def _end(written: CallFormat, tokenizer: Any) -> tuple[str, ...]:
    """The text that ends an answer with its first call. There is none where a call is read only once its end has come,
    which would be cut off, or where arguments may hold that text, as they may a bracket; what follows is left out."""
    end = written.tail.strip()
    token = any(each in end for each in tokenizer.get_added_vocab())
    return (end,) if token and written.tags is None else ()


def echoes(texts: Sequence[Any], tokenizer: Any) -> tuple[str, ...]:
    """Returns the texts of prompts, of which some are token ids."""
    return tuple(
        each if isinstance(each, str) else tokenizer.decode(each, clean_up_tokenization_spaces=False) for each in texts
    )
