"""Adapters that take turns in one answer: one chooses a tool, another writes what it is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.calls import CallFormat, text_so_far


@dataclass(frozen=True, eq=False)
class Turns:
    """Says which adapter the next token of an answer belongs to (DualTune), from the tokens before it.

    A tool's adapter has the tokens behind the tool's name up to the end of its call; all else is the request's own
    adapter's, as are the arguments of a tool that none is named for.
    """

    format: CallFormat
    """How calls are written."""
    tokenizer: Any
    arguments: Mapping[str, str]
    """The adapter of each tool's arguments."""

    def adapter(self, own: str | None, ids: Sequence[int]) -> str | None:
        """Returns the adapter of the token behind `ids`; `own` is that of what is not arguments (None: the base)."""
        owner = self.format.owner(text_so_far(ids, self.tokenizer))
        return own if owner is None else self.arguments.get(owner, own)
