"""Positions: the prompt tokens that a form edits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Positions:
    """The first and the last prompt tokens that a form edits, or every token."""

    first: int = 0
    last: int = 0

    @classmethod
    def parse(cls, text: str) -> Positions | None:
        """Returns `f7+l7`, `f3`, `l1`; `all` is None."""
        if text.strip() == "all":
            return None
        match = re.fullmatch(r"(?:f(\d+))?\+?(?:l(\d+))?", text.strip())
        first, last = (int(n or 0) for n in match.groups()) if match else (0, 0)
        if not first + last:
            raise LuthierError(
                f"positions={text!r} is not understood; write f7+l7 (first 7 and last 7 prompt tokens), f3, l1 or all."
            )
        return cls(first, last)
