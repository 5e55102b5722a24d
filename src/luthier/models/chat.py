"""The chat template that an adapter was trained with, kept in its spec: prompts are rendered by it wherever it goes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.models.seeing import seeing_as

KEPT = "chat"
"""Where a spec keeps it, under `measured`."""


@dataclass(frozen=True)
class Chat:
    """How conversations were rendered in training."""

    template: str | dict[str, str]
    """The tokenizer's chat template, or several by name."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Variables of the template (`chat_template_kwargs`) that all rows gave the same value."""

    def kept(self) -> dict[str, Any]:
        """As a spec keeps it: the template as ASCII, so that no character of it is lost or refused."""
        return {KEPT: {"template": json.dumps(self.template), "variables": self.variables}}

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Chat | None:
        """Returns what a spec keeps; None where it keeps nothing, or nothing that is a template."""
        found = spec["measured"].get(KEPT)
        try:
            template, variables = json.loads(found["template"]), found["variables"]
        except (TypeError, KeyError, ValueError, RecursionError):
            return None
        texts = list(template.values()) if isinstance(template, dict) else [template]
        good = bool(texts) and all(isinstance(each, str) for each in texts) and isinstance(variables, dict)
        return cls(template, variables) if good else None


def with_chat(loaded: Any, spec: Mapping[str, Any], folder: Any) -> Any:
    """A loaded model whose tokenizer renders as the adapter's training did; warns where the base's own is another."""
    import copy
    import warnings

    chat = Chat.of(spec)
    if chat is None or loaded.processor.chat_template == chat.template:
        return loaded
    warnings.warn(
        f"the chat template of {loaded.name!r} is not the one that {folder} was trained with; the adapter's is used.",
        stacklevel=3,
    )
    processor = seeing_as(copy.deepcopy(loaded.processor), loaded.processor)
    processor.chat_template = chat.template
    return dataclasses.replace(loaded, processor=processor)
