"""A tokenizer's chat template, and what a row gives it besides its turns."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from dataclasses import dataclass, field
from typing import Any

from luthier.core.contracts.example import Example, Message
from luthier.core.guard import reason
from luthier.data.bad import BadRow
from luthier.data.messages import THOUGHTS, calls_of, thought_of
from luthier.data.pictures import in_parts

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
TRACKED = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


def has_template(tokenizer: Any) -> bool:
    """Returns whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


@dataclass(frozen=True)
class Template:
    """The chat template of a tokenizer for rows with these tools, documents and variables."""

    tokenizer: Any
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    pictured: bool = False
    """Whether turns are given in parts, for a row with pictures."""
    seen: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)
    """What was rendered already: places are found by rendering the same parts again and again."""

    @classmethod
    def of(cls, example: Example, tokenizer: Any) -> Template:
        """The template for one row. Raises `BadRow` for a variable that would change more than what is rendered."""
        reserved = sorted(set(example.template) & _reserved(type(tokenizer)))
        if reserved:
            raise BadRow(
                f"chat_template_kwargs holds {', '.join(map(repr, reserved))}, which is not a variable of a template; "
                "take it out (tools and documents are columns of their own)"
            )
        return cls(tokenizer, example.tools or None, example.documents or None, example.template, bool(example.images))

    @property
    def name(self) -> str | None:
        """Which of several named templates is meant; None for the only one, or the library's choice among them."""
        named = self.tokenizer.chat_template
        rag = isinstance(named, dict) and self.documents and not self.tools and "rag" in named
        return "rag" if rag else None

    @property
    def source(self) -> str:
        """The template itself."""
        try:
            return self.tokenizer.get_chat_template(self.name, self.tools)
        except Exception as error:
            raise BadRow(f"the tokenizer's chat templates do not fit this row: {error}") from None

    def less(self, **changes: Any) -> Template:
        """Returns the same template for rows that say otherwise."""
        return dataclasses.replace(self, seen={}, **changes)

    def render(self, messages: list[Message], prompt: bool = False) -> str:
        """The turns as text, up to where the answer begins with `prompt`; raises `BadRow` where it is refused."""
        return self._apply(messages, tokenize=False, add_generation_prompt=prompt)

    def attempt(self, messages: list[Message], prompt: bool = False) -> str | None:
        """As `render`, but None where the template refuses a part of a conversation that it takes as a whole."""
        key = json.dumps([messages, prompt], default=str)
        if key not in self.seen:
            try:
                self.seen[key] = self.render(messages, prompt)
            except BadRow:
                self.seen[key] = None
        return self.seen[key]

    def tracked(self, messages: list[Message]) -> Any:
        """Returns the tokens with the mask of what the template itself says that the assistant produces."""
        return self._apply(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )

    def _apply(self, messages: list[Message], **how: Any) -> Any:
        given = {"tools": self.tools, "documents": self.documents}
        heard = [_heard(message, self.source) for message in messages]
        heard = [in_parts(message) for message in heard] if self.pictured else heard
        return applied(
            self.tokenizer, self.source, heard, {**given, **self.variables}, {"chat_template": self.name, **how}
        )

    def unread(self) -> list[str]:
        """Variables of the row that the template never reads."""
        return sorted(set(self.variables) - _variables(self.source))


def applied(tokenizer: Any, source: str, turns: list[Message], variables: dict[str, Any], how: dict[str, Any]) -> Any:
    """What a tokenizer's chat template makes of turns, within the bounds of `luthier.data.bounded`; raises `BadRow`."""
    from luthier.data.bounded import TooMuch, check_bounds

    prompt = {"add_generation_prompt": how.get("add_generation_prompt", False)}
    try:
        check_bounds(source, {**tokenizer.special_tokens_map, **variables, **prompt, "messages": turns})
        return tokenizer.apply_chat_template(turns, **how, **variables)
    except TooMuch as error:
        raise BadRow(f"the chat template is refused: {error}") from None
    except Exception as error:  # of a template, or of what a row gives it: it may raise whatever it likes
        raise BadRow(f"the chat template refuses this conversation: {reason(error, bare=True)}") from None


def _heard(message: Message, source: str) -> Message:
    """A turn as a template reads it: thoughts under the names that it knows, and a call without content has an
    empty one, for templates that add to it unasked."""
    thought = thought_of(message)
    names = [name for name in THOUGHTS[1:] if thought and name in source]
    empty = {"content": ""} if calls_of(message) and message.get("content") is None else {}
    role = {"role": "system"} if message["role"] == "developer" and "developer" not in source else {}
    return {**message, **dict.fromkeys(names, thought), **empty, **role}


@functools.lru_cache(maxsize=8)
def _reserved(cls: type) -> frozenset[str]:
    """What `apply_chat_template` takes as settings of its own."""
    return frozenset({*inspect.signature(cls.apply_chat_template).parameters, "messages"})


@functools.lru_cache(maxsize=64)
def _variables(source: str) -> frozenset[str]:
    """Every name that a template reads from outside."""
    from jinja2 import Environment, meta

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(TRACKED.sub("", source))
        return frozenset(meta.find_undeclared_variables(tree))
    except Exception:  # rendering will say what is wrong with it
        return frozenset(re.findall(r"\w+", source))
